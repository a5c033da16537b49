"""What `siglip-ext-eval` does, one function a command: arguments in, a result file out."""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn import functional as F

from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.encoding import EncodedBatch, image_files, stream_images, stream_texts
from modeling_siglip_ext.files import write_text

from .. import data, prompts
from ..known_benchmarks import Benchmark, find
from ..metrics.retrieval import retrieval_metrics
from ..metrics.zero_shot import (
    accuracies,
    class_embeddings,
    fill_templates,
    first_of_same,
    zero_shot_metrics,
    zero_shot_ranks,
)
from ..results import compare, write_result
from ..session import Session, readable


def source_of(
    args: argparse.Namespace, task: str, split: str | None = None
) -> tuple[Benchmark | None, datasets.Dataset, dict[str, Any]]:
    """The benchmark, if one was named, its rows, and what the result says about them; of `split` if one is given."""
    benchmark = find(args.benchmark, task) if args.benchmark else None
    if benchmark is None and args.dataset is None:
        raise ValueError("give --dataset or --benchmark")
    source = args.dataset or benchmark.dataset
    # a local copy has splits of its own
    split = split or args.split or (benchmark.split if benchmark and args.dataset is None else None)
    rows = data.load(source, config=args.config, split=split)
    if args.limit:
        rows = rows.select(range(min(args.limit, len(rows))))
    about = {
        "benchmark": args.benchmark,
        "source": source,
        "config": args.config,
        "split": split,
        "rows": len(rows),
        "fingerprint": rows._fingerprint,
    }
    return benchmark, rows, about


def image_column(args: argparse.Namespace, rows: datasets.Dataset, benchmark: Benchmark | None = None) -> str:
    given = args.image_column or (benchmark.image_column if benchmark and args.dataset is None else None)
    return data.column(rows, given, data.IMAGE_COLUMNS, "image")


def label_column(args: argparse.Namespace, rows: datasets.Dataset, benchmark: Benchmark | None) -> str:
    given = args.label_column or (benchmark.label_column if benchmark and args.dataset is None else None)
    return data.column(rows, given, data.LABEL_COLUMNS, "label")


def caption_column(args: argparse.Namespace, rows: datasets.Dataset, benchmark: Benchmark | None) -> str:
    given = args.caption_column or (benchmark.caption_column if benchmark and args.dataset is None else None)
    return data.column(rows, given, data.CAPTION_COLUMNS, "caption")


def read_lines_or_json(path: str) -> list[str]:
    """The lines of a text file that are not empty, or the strings of a JSON list."""
    text = Path(path).read_text(encoding="utf-8")
    found = json.loads(text) if path.endswith(".json") else [line for line in text.splitlines() if line.strip()]
    if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
        raise ValueError(f"{path} must hold a list of strings")
    return found


def labels_from_file(path: str, rows: datasets.Dataset, column: str) -> list[list[int]]:
    """Labels from a JSON file: a list, one entry a row or - as ImageNet-ReaL's - one a number in the file names; or a
    mapping of file names. An entry is a class index or a list of them, which may be empty.
    """
    given = json.loads(Path(path).read_text(encoding="utf-8"))
    if isinstance(given, dict):
        found = [given.get(name) for name in data.file_names(rows, column)]
        if None in found:
            raise ValueError(f"{path} has no labels for row {found.index(None)}")
    else:
        numbers = [re.match(r"ILSVRC2012_val_(\d{8})", name or "") for name in data.file_names(rows, column)]
        if all(numbers):
            found = [given[int(number[1]) - 1] for number in numbers]
        elif len(given) == len(rows):
            found = given
        else:
            raise ValueError(f"{path} has {len(given)} labels for {len(rows)} rows without ImageNet's file names")
    return [entry if isinstance(entry, list) else [entry] for entry in found]


def class_names_of(args, benchmark: Benchmark | None, rows: datasets.Dataset, column: str | None) -> tuple[list, str]:
    """Class names and where they are from."""
    wanted = args.class_names or (benchmark.class_names if benchmark else None)
    if wanted == "imagenet":
        return prompts.imagenet_classes(), "imagenet"
    if wanted:
        return read_lines_or_json(wanted), wanted
    source = args.dataset or benchmark.dataset
    if not source.startswith("hf://"):
        beside = data.lines_beside(source, "classnames.txt")
    else:
        from huggingface_hub import HfFileSystem

        text = HfFileSystem().read_text(f"{source.removeprefix('hf://')}/classnames.txt", encoding="utf-8")
        beside = [line.strip() for line in text.splitlines()]
    names = beside or (data.label_names(rows, column) if column else None)
    if names is None:
        raise ValueError("the dataset has no class names: give --class_names, a file with one a line, or imagenet")
    return [name.replace("_", " ") for name in names], "classnames.txt" if beside else "the dataset"


def templates_of(args, benchmark: Benchmark | None) -> tuple[list[str], str]:
    if args.templates and Path(args.templates).is_file():
        return read_lines_or_json(args.templates), args.templates
    beside = data.lines_beside(args.dataset, "zeroshot_classification_templates.txt") if args.dataset else None
    if args.templates is None and beside and not (benchmark and benchmark.class_names == "imagenet"):
        return [template.replace("{c}", "{}") for template in beside], "zeroshot_classification_templates.txt"
    name = args.templates or (benchmark.templates if benchmark else None) or "clip_paper"
    return prompts.templates(name), name


def zero_shot(args: argparse.Namespace) -> None:
    """Classification by class names: accuracy, and mean per-class recall where every image has one label."""
    benchmark, rows, about = source_of(args, "zero-shot")
    image = image_column(args, rows, benchmark)
    if benchmark is not None and benchmark.labels_file and not args.labels:
        raise ValueError(f"benchmark {args.benchmark} needs --labels, the file with its labels")
    column = None if args.labels else label_column(args, rows, benchmark)
    names, names_from = class_names_of(args, benchmark, rows, column)
    if args.labels:
        labels = labels_from_file(args.labels, rows, image)
    else:  # a label map is what leads from the data set's classes to those that the model chooses from
        labels = data.labels(rows, column, None if args.label_map else names)
    templates, templates_from = templates_of(args, benchmark)
    if args.label_map:
        label_map = json.loads(Path(args.label_map).read_text(encoding="utf-8"))
        labels, names = map_labels(label_map, labels, names, data.label_names(rows, column) if column else None)
    shown_names = names
    if args.central_crop is None:
        args.central_crop = benchmark is not None and benchmark.central_crop
    if args.canonicalize:
        names = [prompts.canonicalize(name) for name in names]
        templates = [prompts.canonicalize(template) for template in templates]

    session = Session.open(args)
    embeds, errors = session.embed_images(rows, image)
    if not session.first:
        return
    kept = [row for row in readable(embeds, errors) if labels[row]]
    if not kept:
        raise ValueError("no image has a label")
    filled = fill_templates(names, templates)
    classes = class_embeddings(session.embed_prompts, filled, batch_size=args.batch_size)
    images, own = F.normalize(embeds[kept], dim=-1), [labels[row] for row in kept]
    first_of = first_of_same(filled)
    single = all(len(one) == 1 for one in own)
    if single:
        metrics = zero_shot_metrics(images, classes, [one[0] for one in own], first_of=first_of)
        from ..pictures.charts import confusion_matrix

        predicted = torch.cat([(part @ classes.T).argmax(1) for part in images.split(4096)])
        confusion_matrix(
            Path(args.output_dir) / f"{result_name(args, 'zero-shot')}.png",
            [one[0] for one in own],
            predicted.tolist(),
            shown_names,
            title=f"{about['benchmark'] or Path(about['source']).name}: share of each class's images",
        )
    else:
        metrics = accuracies(zero_shot_ranks(images, classes, own, first_of=first_of), len(classes))
    about |= {"columns": {"image": image, "label": column, "labels_file": args.labels}}
    about |= {"evaluated": len(kept), "unreadable": sorted(errors), "without_label": sum(not one for one in labels)}
    settings = {
        "class_names": names_from,
        "classes": len(names),
        "templates": templates_from,
        "template_count": len(templates),
        "canonicalize": args.canonicalize,
        "central_crop": args.central_crop,
        "label_map": args.label_map,
        "labels": "one a row" if single else "any of several",
    }
    session.finish("zero-shot", metrics, about=about, settings=settings, name=result_name(args, "zero-shot"))


def map_labels(
    label_map: dict[str, Any],
    labels: list[list[int]],
    names: Sequence[str],
    label_names: Sequence[str] | None = None,
) -> tuple[list[list[int]], list[str]]:
    """Labels of a dataset as classes of another, as ObjectNet's as ImageNet's.

    Args:
        label_map: the dataset's label to one class or several, all by index or name. Labels that it lacks do not
            count.
        labels: the dataset's labels.
        names: all classes.
        label_names: the dataset's names of its labels, where it has any.

    Returns:
        New labels, and the names of the classes that the map mentions: only among these a model chooses.
    """
    place = {name: index for index, name in enumerate(names)}
    number = {name: index for index, name in enumerate(label_names or ())}
    targets = {}
    for label, value in label_map.items():
        found = value if isinstance(value, list) else [value]
        unknown = [one for one in found if (one not in place if isinstance(one, str) else not 0 <= one < len(names))]
        if unknown:
            raise ValueError(f"the label map sends {label!r} to {unknown[0]!r}, which is no class")
        if label not in number and not label.isdecimal():
            raise ValueError(f"the label map's {label!r} is neither a number nor one of the data set's labels")
        targets[number[label] if label in number else int(label)] = [
            place[one] if isinstance(one, str) else one for one in found
        ]
    used = sorted({one for found in targets.values() for one in found})
    new = {old: index for index, old in enumerate(used)}
    mapped = [[new[one] for label in own for one in targets.get(label, [])] for own in labels]
    return mapped, [names[old] for old in used]


def retrieval(args: argparse.Namespace) -> None:
    """Recall@1, 5 and 10 of both directions, with any number of captions an image."""
    benchmark, rows, about = source_of(args, "retrieval")
    image = image_column(args, rows, benchmark)
    column = caption_column(args, rows, benchmark)
    captions = data.captions(rows, column)
    session = Session.open(args)
    embeds, errors = session.embed_images(rows, image)
    texts = session.embed_texts([text for own in captions for text in own])
    if not session.first:
        return
    kept = readable(embeds, errors)
    images, owner, chosen = retrieval_sets(embeds, captions, kept)
    metrics = retrieval_metrics(images, texts[chosen], owner)
    from ..pictures.retrieval_sheet import retrieval_contact_sheet

    if args.sheet:
        from modeling_siglip_ext.images import load_image

        firsts = {int(o): place for place, o in reversed(list(enumerate(owner.tolist())))}
        sheet_rows = kept[: args.sheet]
        flat = [text for own in captions for text in own]
        pictures = [load_image(row[image]) for row in data.images(rows, image).select(sheet_rows)]
        order = [int(chosen[firsts[place]]) for place in range(len(sheet_rows))]
        path = Path(args.output_dir) / f"{result_name(args, 'retrieval')}.png"
        title = f"Retrieval among the first {len(sheet_rows)} images, one caption each"
        retrieval_contact_sheet(
            path, pictures, [flat[i] for i in order], images[: len(order)], texts[order], title=title
        )
    about |= {"columns": {"image": image, "caption": column}, "evaluated": len(kept), "texts": len(chosen)}
    about |= {"unreadable": sorted(errors)}
    session.finish("retrieval", metrics, about=about, settings={}, name=result_name(args, "retrieval"))


def retrieval_sets(
    embeds: torch.Tensor, captions: list[list[str]], kept: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised images, the image of each text, and which texts belong to images that are kept."""
    place = {int(row): index for index, row in enumerate(kept)}
    owner = torch.tensor([place.get(row, -1) for row, own in enumerate(captions) for _ in own])
    chosen = (owner >= 0).nonzero()[:, 0]
    return F.normalize(embeds[torch.from_numpy(kept)], dim=-1), owner[chosen], chosen


def multilingual_retrieval(args: argparse.Namespace) -> None:
    """Retrieval in each language, and the mean over the languages.

    In each language among the images that have a caption in it.
    """
    rows, of_language, about = multilingual_rows(args)
    session = Session.open(args)
    embeds, errors = session.embed_images(rows, "image")
    found, counts, kept = {}, {}, None
    for language, captions in of_language.items():
        # one language at a time: the captions of 36 together would take gigabytes
        texts = session.embed_texts([text for own in captions for text in own])
        if session.first:
            kept = readable(embeds, errors) if kept is None else kept
            images, owner, chosen = retrieval_sets(embeds, captions, kept[[bool(captions[row]) for row in kept]])
            found[language], counts[language] = retrieval_metrics(images, texts[chosen], owner), len(images)
    if not session.first:
        return
    keys = list(next(iter(found.values())))
    macro = {key: float(np.mean([metrics[key] for metrics in found.values()])) for key in keys}
    from ..pictures.charts import language_bars

    name = result_name(args, "multilingual-retrieval")
    path = Path(args.output_dir) / f"{name}.png"
    language_bars(path, found)
    about |= {"languages": counts, "evaluated": len(kept), "unreadable": sorted(errors)}
    session.finish("multilingual-retrieval", macro | {"languages": found}, about=about, settings={}, name=name)


def multilingual_rows(args) -> tuple[datasets.Dataset, dict[str, list[list[str]]], dict[str, Any]]:
    """Images, captions by language, and what the result says about them."""
    if args.dataset is None:
        raise ValueError("give --dataset: the folder of Crossmodal-3600, or a dataset with a column for each language")
    if (Path(args.dataset) / "captions.jsonl").exists():
        paths, of_language = data.xm3600(args.dataset)
        rows = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image(decode=False))
        about = {"benchmark": "xm3600", "source": args.dataset, "rows": len(rows)}
        if args.languages:
            of_language = {language: of_language[language] for language in known_languages(args, of_language)}
        return rows, of_language, about
    _, rows, about = source_of(args, "multilingual-retrieval")
    image = image_column(args, rows)
    if not args.languages:
        raise ValueError("give --languages, the columns with the captions of each language")
    for language in args.languages:
        data.column(rows, language, (), "caption")
    of_language = {language: data.captions(rows, language, optional=True) for language in args.languages}
    empty = [language for language, captions in of_language.items() if not any(captions)]
    if empty:
        raise ValueError(f"no row has a caption in {', '.join(empty)}")
    return rows.rename_column(image, "image") if image != "image" else rows, of_language, about


def known_languages(args, of_language: dict[str, Any]) -> list[str]:
    unknown = [language for language in args.languages if language not in of_language]
    if unknown:
        raise ValueError(f"there are no captions in {', '.join(unknown)}; there are {', '.join(of_language)}")
    return args.languages


def probe(args: argparse.Namespace) -> None:
    """few-shot, linear-probe and knn: train on the embeddings of one split, test on those of another."""
    sets, about = {}, {}
    known = find(args.benchmark, args.command).train_split if args.benchmark else None
    for part, split in (("train", args.train_split or known or "train"), ("test", None)):
        benchmark, rows, part_about = source_of(args, args.command, split)
        sets[part] = rows, image_column(args, rows, benchmark), label_column(args, rows, benchmark)
        about[part] = part_about
    # of both, so that a class has one number where labels are strings
    names = sorted({name for rows, _, column in sets.values() for name in data.label_names(rows, column) or ()})
    labels = {part: data.labels(rows, column, names) for part, (rows, _, column) in sets.items()}
    for part, own in labels.items():
        if any(len(one) != 1 for one in own):
            raise ValueError(f"the {part} rows have several labels, or none; a probe needs one a row")
    session = Session.open(args)
    embeds = {part: session.embed_images(rows, image) for part, (rows, image, _) in sets.items()}
    if not session.first:
        return
    features, targets, about = {}, {}, about["test"] | {"train": about["train"]}
    for part, (found, errors) in embeds.items():
        kept = readable(found, errors)
        features[part] = found[torch.from_numpy(kept)].numpy()
        targets[part] = np.array(labels[part])[kept, 0]
        about |= {f"{part}_rows": len(kept), f"{part}_unreadable": sorted(errors)}
    given = (features["train"], targets["train"], features["test"], targets["test"])
    if args.command == "few-shot":
        from ..metrics.few_shot import few_shot_metrics

        settings = {"shots": args.shots, "seeds": args.seeds, "l2": args.l2}
        metrics = few_shot_metrics(*given, **settings)
    elif args.command == "linear-probe":
        from ..metrics.probes import linear_probe

        settings = {"seed": args.seed}
        metrics = linear_probe(*given, **settings)
    else:
        from ..metrics.probes import knn

        settings = {"k": args.k}
        metrics = knn(*given, **settings)
    session.finish(args.command, metrics, about=about, settings=settings, name=result_name(args, args.command))


def threshold(args: argparse.Namespace) -> None:
    """Calibrate the cosine from which an image and a text count as matched."""
    from ..metrics.similarity import calibrate_threshold
    from ..pictures.charts import similarity_histogram

    benchmark, rows, about = source_of(args, "threshold")
    image, column = image_column(args, rows, benchmark), caption_column(args, rows, benchmark)
    texts = [own[0] for own in data.captions(rows, column)]
    session = Session.open(args)
    embeds, errors = session.embed_images(rows, image)
    text_embeds = session.embed_texts(texts)
    if not session.first:
        return
    kept = torch.from_numpy(readable(embeds, errors))
    images, text_embeds = F.normalize(embeds[kept], dim=-1), text_embeds[kept]
    similarities = (images * text_embeds).sum(1)
    if args.label_column:
        own = data.labels(rows, data.column(rows, args.label_column, (), "label"))
        matched = np.array([own[row][0] for row in kept.tolist()], bool)
    else:
        # each image with another row's text, shifted by a random number of rows; equal texts are no mismatch
        shift = int(np.random.default_rng(args.seed).integers(1, max(2, len(kept))))
        others = torch.arange(len(kept)).roll(shift)
        wrong = [texts[a] != texts[b] for a, b in zip(kept.tolist(), kept[others].tolist())]
        unmatched = (images * text_embeds[others]).sum(1)[torch.tensor(wrong)]
        matched = np.concatenate([np.ones(len(similarities), bool), np.zeros(len(unmatched), bool)])
        similarities = torch.cat((similarities, unmatched))
    metrics = calibrate_threshold(similarities.numpy(), matched, precision=args.precision)
    scale, bias = session.model.logit_scale.exp().item(), getattr(session.model, "logit_bias", None)
    if bias is not None:
        logit = torch.tensor(metrics["threshold"] * scale + bias.item(), dtype=torch.float64)
        metrics["probability_at_threshold"] = logit.sigmoid().item()
    name = result_name(args, "threshold")
    path = Path(args.output_dir) / f"{name}.png"
    similarity_histogram(path, similarities.numpy(), matched, metrics["threshold"])
    about |= {"columns": {"image": image, "caption": column, "label": args.label_column}}
    about |= {"pairs": len(matched), "matched": int(matched.sum()), "unreadable": sorted(errors)}
    settings = {"precision": args.precision, "seed": None if args.label_column else args.seed}
    session.finish("threshold", metrics, about=about, settings=settings, name=name)


def embed(args: argparse.Namespace) -> None:
    """Embeddings of many images or texts in a folder of Parquet or safetensors files; goes on where it was stopped."""
    if sum(value is not None for value in (args.images, args.texts, args.dataset)) != 1:
        raise ValueError("give one of --images, --texts and --dataset")
    kind, rows, names = "image", None, None
    if args.images:
        names = [str(path) for path in image_files(args.images)]
        items: Sequence[Any] = names
    elif args.texts:
        kind, items = "text", read_lines_or_json(args.texts)
    else:
        rows = data.load(args.dataset, config=args.config, split=args.split)
        if args.caption_column:
            kind = "text"
            items = [own[0] for own in data.captions(rows, data.column(rows, args.caption_column, (), "caption"))]
        else:
            column = image_column(args, rows)
            source = data.images(rows, column)
            items = source
    session = Session.open(args)

    def encode(first: int, last: int) -> Iterator[EncodedBatch]:
        if kind == "text":
            return stream_texts(session.model, session.processor, items[first:last], batch_size=args.batch_size)
        part = items[first:last] if rows is None else (row[column] for row in source.select(range(first, last)))
        sizes = {"batch_size": args.batch_size, "workers": args.workers}
        return stream_images(session.model, session.processor, part, **sizes)

    if not len(items):
        raise ValueError("there is nothing to embed")
    identity = rows._fingerprint if rows is not None else store.fingerprint({"items": list(items)})
    folder = Path(args.output)
    settings = session.settings(kind, data=identity, normalized=True, model=args.model)
    form = {"form": args.format, "part_rows": args.part_rows}
    store.compute(folder, settings, len(items), encode, session.model, names=names, what=f"{kind}s", **form)
    if session.first:
        _, errors, _ = store.read(folder)
        for row, message in errors.items():
            print(f"row {row} cannot be read: {message}")
        print(f"{len(items) - len(errors)} of {len(items)} {kind}s are in {folder}")


def duplicates(args: argparse.Namespace) -> None:
    """Groups of images so similar that they may be the same, from a folder that `embed` wrote."""
    from ..metrics.similarity import duplicate_groups, duplicate_pairs

    embeds, errors, names = store.read(args.embeddings)
    pairs, scores = duplicate_pairs(embeds, args.threshold)
    groups = duplicate_groups(pairs, len(embeds))
    score_of = {(int(a), int(b)): float(score) for (a, b), score in zip(pairs, scores)}
    listed = [
        {
            "rows": group,
            "names": [names[row] for row in group],
            "least_cosine": min(score for (a, b), score in score_of.items() if a in group and b in group),
        }
        for group in groups
    ]
    metrics = {"groups": len(groups), "in_groups": sum(map(len, groups)), "rows": len(embeds)}
    write_result(
        Path(args.output),
        "duplicates",
        metrics,
        dataset={"source": args.embeddings, "unreadable": sorted(errors)},
        settings={"threshold": args.threshold},
        groups=listed,
    )
    for group in listed:
        print("  ".join(name or str(row) for name, row in zip(group["names"], group["rows"])))
    print(f"{metrics['in_groups']} of {metrics['rows']} in {metrics['groups']} groups: {args.output}")


def report(args: argparse.Namespace) -> None:
    """Results side by side, as Markdown."""
    text = compare(args.results)
    if args.output:
        write_text(args.output, text)
        print(args.output)
    else:
        print(text, end="")


def result_name(args: argparse.Namespace, task: str) -> str:
    about = args.benchmark or Path(args.dataset.rstrip("/")).name
    return re.sub(r"[^\w.-]+", "-", f"{task}-{about}")
