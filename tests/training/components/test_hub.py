"""What a training run pushes, over HTTP."""

import json
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from transformers import AutoModel, AutoProcessor

from modeling_siglip_ext.hub.upload import RefusedError
from modeling_siglip_ext.training.components.card import GENERATED
from support.processes import HUB_SERVER, server


TOKEN = "hf_test"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """(address, folder) of an empty Hub that huggingface_hub talks to."""
    folder = tmp_path / "hub"
    with server(HUB_SERVER, folder, "--lfs") as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield address, folder


def test_a_run_pushes_its_model_with_a_card(hub, our_model, make, processor):
    """At every checkpoint in the background and at the end: no pickles, no optimiser state, one commit each."""
    address, folder = hub
    settings = {"push_to_hub": True, "hub_model_id": "user/run", "save_strategy": "steps", "save_steps": 2}
    trainer = make(our_model, max_steps=4, logging_steps=1, hub_always_push=True, **settings)
    trainer.train()
    trainer.evaluate()
    commit = trainer.push_to_hub()
    there = {path.relative_to(folder / "user/run").as_posix() for path in (folder / "user/run").rglob("*")}
    weights = {"model.safetensors", "config.json", "README.md", "processor_config.json", "tokenizer.json"}
    assert weights <= there
    assert not [name for name in there if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]
    assert "trainer_state.json" not in there
    assert (Path(trainer.args.output_dir) / "checkpoint-4" / "optimizer.pt").exists()
    assert HfApi().model_info("user/run").sha == commit.oid
    with urllib.request.urlopen(f"{address}/-/log") as answer:
        calls = json.loads(answer.read())
    messages = [call for call in calls if "/commit/" in call["path"]]
    assert len(messages) >= 2, "after a checkpoint, and at the end"
    card = ModelCard.load(folder / "user/run" / "README.md")
    assert GENERATED in card.data.tags
    assert 'from_pretrained("user/run")' in card.text
    assert "4 steps" in card.text
    assert "loss_curve.png" in there
    loaded = AutoModel.from_pretrained(folder / "user/run")
    assert type(loaded).__module__.startswith("transformers.")
    for (name, old), (_, new) in zip(our_model.named_parameters(), loaded.named_parameters()):
        assert old.detach().equal(new.detach()), name
    AutoProcessor.from_pretrained(folder / "user/run")


def test_a_name_that_is_taken_is_found_out_before_the_first_step(hub, our_model, make):
    api = HfApi(token=TOKEN)
    api.create_repo("user/taken")
    api.upload_file(path_or_fileobj=b"# Mine\n", path_in_repo="README.md", repo_id="user/taken")
    with pytest.raises(RefusedError, match="did not write"):
        make(our_model, push_to_hub=True, hub_model_id="user/taken")
    make(our_model, push_to_hub=True, hub_model_id="user/taken", hub_overwrite=True)


def test_a_name_without_a_user_is_the_users_own(hub, our_model, make):
    trainer = make(our_model, push_to_hub=True, hub_model_id="mine", hub_private_repo=True)
    assert trainer.hub_model_id == "user/mine"
    assert HfApi(token=TOKEN).model_info("user/mine").private


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_strategies_that_publish_optimiser_state_are_refused(hub, our_model, make, strategy):
    with pytest.raises(ValueError, match="optimiser state"):
        make(our_model, push_to_hub=True, hub_model_id="user/run", hub_strategy=strategy)


def test_a_push_in_the_background_that_fails_is_told(hub, our_model, make, caplog):
    trainer = make(our_model, max_steps=1, push_to_hub=True, hub_model_id="user/run", hub_token="hf_test")
    trainer.train()
    trainer.args.hub_token = "hf_read"
    job = trainer.push_to_hub(blocking=False)
    assert job.exception(timeout=120) is not None
    assert "may not write" in str(job.exception())
