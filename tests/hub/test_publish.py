"""Publishing over HTTP: what is sent, what is refused, and what happens when the line or the Hub fails."""

import json
import multiprocessing
import random
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load_file, save_file

from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.hub.calls import PublishError
from modeling_siglip_ext.hub.publish import publish
from modeling_siglip_ext.hub.upload import RefusedError, prepare, select


NAME = "user/model"
TOKEN = "hf_test"
# every call of a first push, in its order
CALLS = [
    ("GET", f"^/api/models/{NAME}$"),
    ("POST", "/repos/create$"),
    ("GET", "/xet-write-token/"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch$"),
    ("PUT", "^/-/lfs/"),
    ("POST", "^/-/verify/"),
    ("POST", "/validate-yaml$"),
    ("POST", "/commit/"),
]
NAMES = ["info", "create", "xet", "preupload", "batch", "put", "verify", "validate", "commit"]
AT_EVERY_CALL = [
    pytest.param(call, id=name, marks=[] if name == "commit" else pytest.mark.slow) for call, name in zip(CALLS, NAMES)
]
TRANSIENT = {
    "429": {"status": 429, "headers": {"Retry-After": "7"}},
    "500": {"status": 500},
    "drop": {"drop": "before"},
}


def fault(call: tuple[str, str], kind: dict, times: int = 1) -> dict:
    return {"method": call[0], "path": call[1], "times": times, **kind}


def local_files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != "README.md"}


def assert_published(hub, folder: Path, name: str = NAME) -> None:
    """The repository holds the folder, byte for byte, and a card that names the repository."""
    there = hub.files(name)
    card = there.pop("README.md").decode()
    assert there == local_files(folder)
    assert f'from_pretrained("{name}")' in card
    ModelCard(card).validate()


def test_a_folder_becomes_one_commit(hub, model, capsys):
    said = []
    commit = publish(model, NAME, private=True, say=said.append)
    assert_published(hub, model)
    calls = hub.calls()
    assert len([call for call in calls if "/commit/" in call]) == 1
    assert len([call for call in calls if call.startswith("PUT")]) == len(list(model.glob("*.safetensors"))) > 3
    info = HfApi().model_info(NAME)
    assert (info.sha, info.private) == (commit.oid, True)
    listed = [line.split("  ")[-1] for line in said[1:-1]]
    assert sorted(listed) == sorted([*local_files(model), "README.md"])
    assert "(new)" in said[0]
    assert '"."' in (model / "README.md").read_text(), "the folder itself stays as it is"


def test_publishing_again_changes_nothing_and_sends_no_weights(hub, model):
    first = publish(model, NAME)
    hub.control()
    again = publish(model, NAME)
    assert again.oid == first.oid
    assert not [call for call in hub.calls() if call.startswith("PUT") or "/commit/" in call]


def test_files_that_would_be_loaded_in_place_of_ours_are_removed(hub, model, stand_in, monkeypatch):
    """A model in several files over one in a single file: loaders prefer the single one."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # for upload_file
    publish(stand_in("stock"), NAME)
    api = HfApi(token=TOKEN)
    for extra in ("notes.txt", "pytorch_model.bin", "adapter_config.json", "onnx/model.json"):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=extra, repo_id=NAME)
    said = []
    publish(model, NAME, say=said.append)
    there = hub.files(NAME)
    assert there.keys() - local_files(model).keys() == {"README.md", "notes.txt", "onnx/model.json"}
    removed = [line.split()[-1] for line in said if "removed" in line]
    assert removed == ["adapter_config.json", "model.safetensors", "pytorch_model.bin"]


def test_what_belongs_to_a_run_stays_here(hub, model):
    private = {
        "training_args.bin": b"pickle",
        "optimizer.pt": b"pickle",
        "optimizer.safetensors": b"state",
        "trainer_state.json": b"{}",
        "progress_0.json": b"{}",
        "scheduler.pt": b"",
        ".env": b"",
        "checkpoint-5/model.safetensors": b"",
        "checkpoint-5/optimizer.pt": b"",
        "runs/events.out.tfevents.1": b"",
        ".cache/token": b"",
    }
    for name, content in private.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(content)
    (model / "held_out").mkdir()
    (model / "held_out" / "00.png").write_bytes(b"picture")
    said = []
    publish(model, NAME, say=said.append)
    there = hub.files(NAME)
    assert not there.keys() & private.keys()
    assert "held_out/00.png" in there
    left = [line.split()[2].strip(":") for line in said if "left here" in line]
    assert set(left) >= {"training_args.bin", "optimizer.pt", "optimizer.safetensors", "checkpoint-5/", ".cache/"}


def test_the_draft_of_a_writer_that_was_killed_stays_here(tmp_path):
    for name in (".eval_results/a.yaml", ".eval_results/.a.yaml.x.part/a.yaml", ".config.json.x.part/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    files, left_out = select(tmp_path)
    assert files == [".eval_results/a.yaml"]
    assert left_out.keys() == {".eval_results/.a.yaml.x.part/a.yaml", ".config.json.x.part/"}


@pytest.mark.parametrize("token", [TOKEN, "hf_" + "a" * 34])
def test_a_token_in_a_file_is_found(hub, model, token):
    (model / "preprocessing.json").write_text(json.dumps({"token": token}))
    with pytest.raises(RefusedError, match=r"preprocessing\.json holds an access token") as error:
        publish(model, NAME)
    assert token not in str(error.value)
    assert not hub.calls()


def test_a_dry_run_sends_nothing(hub, model, capsys):
    assert main(["publish", str(model), NAME, "--dry-run"]) == 0
    assert "model-00001-of" in capsys.readouterr().out
    assert {call.split()[0] for call in hub.calls()} <= {"GET"}


def test_the_card_of_others_is_not_overwritten(hub, model, capsys):
    api = HfApi(token=TOKEN)
    api.create_repo(NAME)
    api.upload_file(path_or_fileobj=b"# Mine, by hand\n", path_in_repo="README.md", repo_id=NAME)
    assert main(["publish", str(model), NAME]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert hub.files(NAME) == {"README.md": b"# Mine, by hand\n"}
    assert main(["publish", str(model), NAME, "--overwrite"]) == 0
    assert_published(hub, model)


def test_an_empty_repository_is_no_obstacle_and_files_without_a_card_are(hub, model):
    api = HfApi(token=TOKEN)
    api.create_repo(NAME)
    publish(model, NAME)
    api.create_repo("user/data")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="data.csv", repo_id="user/data")
    with pytest.raises(RefusedError, match="files that siglip-ext did not write"):
        publish(model, "user/data")


def test_what_should_be_private_is_not_made_public(hub, model):
    HfApi(token=TOKEN).create_repo(NAME)
    with pytest.raises(RefusedError, match="is public"):
        publish(model, NAME, private=True)
    assert not hub.files(NAME)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "README.md").unlink(), r"no README\.md"),
        (lambda folder: (folder / "config.json").unlink(), r"no config\.json"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "has no model-"),
        (lambda folder: next(folder.glob("*.safetensors")).write_bytes(b"x" * 99), "not a sound safetensors"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "damaged"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "processor_config.json").write_text("{"), "processor .* does not load"),
        (lambda folder: (folder / "README.md").write_text("---\nlicense: 1\n---\n"), "license 1"),
        (lambda folder: (folder / "export.json").write_text("{}"), "is an export.*`hf upload`"),
    ],
)
def test_a_folder_that_does_not_load_is_not_published(hub, model, spoil, message):
    spoil(model)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        publish(model, NAME)
    assert not hub.calls()


@pytest.mark.parametrize("name", ["model", "user/a/b", "user/", "user/mo del", "../x/y"])
def test_a_bad_name_is_refused(model, name):
    with pytest.raises(RefusedError):
        prepare(model, name)


# ---- failures ----


@pytest.mark.parametrize("kind", TRANSIENT)
@pytest.mark.parametrize("call", AT_EVERY_CALL)
def test_a_failure_that_passes_is_retried(hub, model, waits, call, kind):
    hub.control(faults=[fault(call, TRANSIENT[kind], times=2)])
    publish(model, NAME)
    assert_published(hub, model)
    if kind == "429":
        assert any(wait >= 7 for wait in waits), "the Hub asked for 7 seconds"
    assert len([call for call in hub.log() if "/commit/" in call["path"] and call["status"] == 200]) == 1


MESSAGES = {
    401: "does not accept the token.*hf auth login",
    403: "may not write to user/model",
    429: "asks to wait",
    500: "fails with 500",
    "drop": "cannot be reached",
}


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("call", AT_EVERY_CALL)
def test_a_failure_that_stays_gives_one_message(hub, model, waits, caplog, capsys, call, kind):
    if call == CALLS[2] and kind in (401, 403):
        pytest.skip("the question whether xet is served, refused: then the older protocol is used, and all is well")
    failure = {"drop": "before"} if kind == "drop" else {"status": kind, "headers": {"Retry-After": "1"}}
    hub.control(faults=[fault(call, failure, times=1000)])
    assert main(["publish", str(model), NAME]) == 2
    said = capsys.readouterr()
    message = said.err.strip().splitlines()[-1]
    assert message.startswith("siglip-ext-convert: error: not published: ")
    assert re.search(MESSAGES[kind], message), message
    assert "Traceback" not in said.err
    assert TOKEN not in said.out + said.err + caplog.text
    assert not hub.files(NAME), "nothing is to be seen of half an upload"
    hub.control(heal=True)
    assert main(["publish", str(model), NAME]) == 0
    assert_published(hub, model)


def test_a_token_that_may_only_read(hub, model, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    assert main(["publish", str(model), NAME]) == 2
    assert "may not write" in capsys.readouterr().err


def test_a_wrong_token_and_none(hub, model, monkeypatch, capsys):
    for wrong in ("hf_wrong", ""):
        monkeypatch.setenv("HF_TOKEN", wrong)
        monkeypatch.setattr("modeling_siglip_ext.hub.publish.get_token", lambda wrong=wrong: wrong or None)
        assert main(["publish", str(model), NAME]) == 2
        said = capsys.readouterr()
        assert "hf auth login" in said.err
        assert "hf_wrong" not in said.out + said.err


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, model, stand_in, waits):
    publish(stand_in("stock"), NAME)  # so that files are removed, too
    hub.control(faults=[fault(CALLS[-1], {"drop": "after"})])
    commit = publish(model, NAME)
    assert_published(hub, model)
    assert HfApi().model_info(NAME).sha == commit.oid
    assert len([call for call in hub.calls() if "/commit/" in call]) == 1


def test_somebody_else_commits_meanwhile(hub, model, waits, monkeypatch):
    """Between the look at the repository and the commit: the commit is refused, not put on top."""
    publish(model, NAME)
    send, other = HfApi.create_commit, HfApi(endpoint=hub.address, token=TOKEN)

    def late(self, *args, **kwargs):
        monkeypatch.undo()
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        other.upload_file(path_or_fileobj=b"#", path_in_repo="other.md", repo_id=NAME)
        return send(self, *args, **kwargs)

    (model / "LICENSE").write_text("mine")
    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(PublishError, match="changed by somebody else"):
        publish(model, NAME, endpoint=hub.address)
    assert "LICENSE" not in hub.files(NAME)


# ---- cuts ----


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.glob("*.safetensors")]


def complete_objects(hub) -> set[str]:
    return {path.name for path in (hub.folder / ".objects").iterdir() if "." not in path.name}


def assert_resumed(hub, folder: Path, name: str, complete: set[str]) -> None:
    """All is there, and nothing that was there before was sent again."""
    assert_published(hub, folder, name)
    sent = {call["path"].rpartition("/")[2] for call in hub.log() if call["method"] == "PUT"}
    assert not sent & complete


def test_a_cut_upload_is_resumed(hub, model, waits):
    total = sum(sizes(model))
    for number, share in enumerate((0.1, 0.5, 0.99)):
        name = f"user/model-{number}"
        hub.control(cut=int(share * total))
        with pytest.raises(PublishError, match=r"cannot be reached.*kept"):
            publish(model, name)
        assert not hub.files(name)
        complete = complete_objects(hub)
        hub.control(heal=True)
        publish(model, name)
        assert_resumed(hub, model, name, complete)
        hub.control(reset=True)


@pytest.mark.slow
def test_a_killed_upload_is_resumed_at_ten_random_points(hub, model, tmp_path):
    """The process is killed while it sends, as many bytes as a seeded generator says."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modeling_siglip_ext.hub.publish"])
    total, points = sum(sizes(model)), random.Random(0)
    for number in range(10):
        folder = tmp_path / f"model-{number}"  # other weights, or the Hub would have them already
        shutil.copytree(model, folder)
        for path in folder.glob("*.safetensors"):
            save_file({k: v + number for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
        name = f"user/model-{number}"
        options = {"endpoint": hub.address, "token": TOKEN}
        process = context.Process(target=publish, args=(folder, name), kwargs=options)
        process.start()
        hub.control(cut=points.randrange(total), pid=process.pid)
        process.join(300)
        assert process.exitcode == -9
        assert not hub.files(name)
        complete = complete_objects(hub)
        hub.control(heal=True)
        publish(folder, name)
        assert_resumed(hub, folder, name, complete)
