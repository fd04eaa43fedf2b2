"""trainer=fsdp on two gloo ranks of a CPU: the same training, in checkpoints that any other trainer goes on from."""

from pathlib import Path

import torch

from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from tests.train.runs.kills import finished


def test_sharded_goes_on_sharded_and_then_whole_as_if_never_sharded(tmp_path: Path) -> None:
    root = f"data.root={write_photographs(tmp_path / 'photographs')}"
    common = ["experiment=demo", "data=folder", *TINY_NETWORK, *TINY_DATA, *TINY_RUN, root, "schedule=constant"]
    common += ["validation.lpips=null", "trainer.gradient_clip_val=1"]
    whole = ["trainer.max_steps=6", "data.batch_size=2"]
    sharded = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2", "data.batch_size=1"]
    finished(tmp_path, *common, *whole, "name=whole")
    for attempt in ([*sharded, "trainer.max_steps=2"], [*sharded, "trainer.max_steps=4"], whole):
        printed = finished(tmp_path, *common, *attempt, "name=sharded")
    assert "continues from runs/sharded/checkpoints/step_0000004.ckpt" in printed
    one, other = (
        torch.load(tmp_path / "runs" / name / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "sharded")
    )
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.allclose(value, other["state_dict"][name], atol=2e-5), name
    moments, others = (state["optimizer_states"][0]["state"] for state in (one, other))
    assert moments.keys() == others.keys()
    assert all(torch.allclose(moments[key]["exp_avg"], others[key]["exp_avg"], atol=1e-5) for key in moments)
