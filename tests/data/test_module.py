"""The loaders of a run: order over workers, ranks and restarts; roots; the configs in conf/data."""

import os
import pickle
import signal
import threading
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import LightningModule, Trainer
from PIL import Image
from threadpoolctl import threadpool_info
from torch.utils.data import DataLoader, TensorDataset

from data.cutting import center_crop
from data.images import UnreadableImage
from data.module import at_most_cores, one_thread
from data.sources.files import ImageFolder
from data.sources.opening import open_images
from tests.data.conftest import textured
from tests.data.samples import face_data
from train.jobs.config import check, plain
from train.trust import build

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))


def first(loader, count):
    return list(islice(loader, count))


def middle_of(number):
    """(3, 16, 16) of 0 to 255: what is left of the 24x20 picture of that number of `folder`, shrunk to 19x16 and cut."""
    return center_crop(textured(24, 20, number), 16).transpose(2, 0, 1)


def positions(batches):
    return [batch["position"].tolist() for batch in batches]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_batch_contract(folder, shade):
    (batch,) = first(face_data(folder, shade).train_dataloader(), 1)
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "lq": ((4, 3, 16, 16), torch.float32),
        "hq": ((4, 3, 16, 16), torch.float32),
        "position": ((4,), torch.int64),
        "unreadable": ((4,), torch.int64),
    }
    assert 0 <= batch["lq"].min() <= batch["hq"].max() <= 1
    for position in range(4):
        factor = np.random.default_rng([3, position, 16, 16]).random(dtype=np.float64)  # what Shade draws with data.seed=3
        torch.testing.assert_close(batch["lq"][position], batch["hq"][position] * factor)


def test_workers_change_nothing(folder, shade):
    none = first(face_data(folder, shade).train_dataloader(), 4)
    assert positions(none) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert_equal(none, first(face_data(folder, shade, num_workers=2).train_dataloader(), 4))


def test_a_worker_names_the_unreadable_file(folder, shade):
    (folder / "img_0.png").write_bytes(b"gone")
    batches = iter(face_data(folder, shade, num_workers=1, val_images=1).train_dataloader())
    with pytest.raises(UnreadableImage, match=r"img_0\.png can't be read"):
        [next(batches) for _ in range(4)]
    batches._shutdown_workers()  # else whenever garbage is collected, which then waits for ten seconds


def with_trainer(data, rank=0, world=1, global_step=0, accumulate=1):
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world,
        global_step=global_step,
        accumulate_grad_batches=accumulate,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return data


def test_two_ranks_read_what_one_reads(folder, shade):
    alone = first(face_data(folder, shade, batch_size=4).train_dataloader(), 3)
    ranks = [
        first(with_trainer(face_data(folder, shade, batch_size=2), rank=rank, world=2).train_dataloader(), 3) for rank in (0, 1)
    ]
    joined = [{key: torch.cat([left[key], right[key]]) for key in left} for left, right in zip(*ranks, strict=True)]
    assert_equal(alone, joined)


def test_validation_is_shared_out(folder, shade):
    def validation(**where):
        return positions(with_trainer(face_data(folder, shade), **where).val_dataloader())

    assert validation() == [[0], [1], [2], [3]]
    assert validation(rank=0, world=2) == [[0], [2]]
    assert validation(rank=1, world=2) == [[1], [3]]
    data = with_trainer(face_data(folder, shade), rank=1, world=2)
    assert [Path(data.val_name(number)).name for number in range(2)] == ["img_5.png", "img_6.png"], "of two LQs each"


def test_held_out_images_are_the_last_and_are_not_trained_on(folder, shade):
    data = face_data(folder, shade)
    held_out = data.fixed.images.source
    assert [held_out.name(index) for index in range(2)] == [str(folder / f"img_{number}.png") for number in (5, 6)]
    assert len(data.faces.images.source) == 5
    assert data.faces.images.source.name(4) == str(folder / "img_4.png")
    np.testing.assert_array_equal((data.fixed[0]["hq"] * 255).round(), middle_of(5))


@pytest.mark.parametrize("val_root", [False, True])
def test_the_first_images_alone_are_trained_on(folder, shade, val_root):
    given = {"val_root": str(folder)} if val_root else {}
    data, whole = face_data(folder, shade, first=3, **given), face_data(folder, shade, **given)
    images = data.faces.images.source
    assert [Path(images.name(index)).name for index in range(len(images))] == ["img_0.png", "img_1.png", "img_2.png"]
    assert_equal(first(data.val_dataloader(), 4), first(whole.val_dataloader(), 4))
    seen = [data.faces.order.image_at(position) for position in range(9)]
    assert sorted(seen) == [0, 0, 0, 1, 1, 1, 2, 2, 2], "each pass has these three"
    left = 7 if val_root else 5
    with pytest.raises(ValueError, match=rf"data\.first=50000, and .* holds {left} images to train on: .* data\.first=null"):
        face_data(folder, shade, first=50000, **given)


def test_val_root(folder, shade):
    data = face_data(folder, shade, val_root=str(folder))
    assert (len(data.faces.images.source), len(data.fixed)) == (7, 14)
    np.testing.assert_array_equal((data.fixed[13]["hq"] * 255).round(), middle_of(6))


def test_fewer_validation_samples_than_ranks(folder, shade):
    data = with_trainer(face_data(folder, shade, val_images=1, val_degradations=2), world=3)
    with pytest.raises(ValueError, match=r"2 validation samples are too few for 3 devices: raise data\.val_images"):
        data.val_dataloader()


def test_samples_are_counted_at_the_optimizer_step(folder, shade):
    data = with_trainer(face_data(folder, shade, batch_size=4), world=2, global_step=10, accumulate=3)
    data.load_state_dict({"samples": 240})
    assert data.state_dict() == {"samples": 240}
    assert positions(first(data.train_dataloader(), 1)) == [[240, 241, 242, 243]]
    data.trainer.global_step = 12
    assert data.state_dict() == {"samples": 240 + 2 * 4 * 2 * 3}
    assert positions(first(data.train_dataloader(), 1))[0][0] == 288  # a loader made anew in mid-run


class Recorder(LightningModule):
    """Records which positions it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def training_step(self, batch, batch_index):
        self.seen += batch["position"].tolist()
        return self.weight * batch["lq"].mean()

    def validation_step(self, batch, batch_index):
        assert batch["hq"].shape == (1, 3, 16, 16)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_run_that_is_stopped_and_resumed_reads_on(folder, shade, tmp_path):
    def fit(steps, resume=None):
        module = Recorder()
        trainer = Trainer(
            max_steps=steps,
            accumulate_grad_batches=2,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            check_val_every_n_epoch=None,
            val_check_interval=4,
        )
        trainer.fit(module, datamodule=face_data(folder, shade), ckpt_path=resume, weights_only=resume and True)
        trainer.save_checkpoint(tmp_path / f"step_{steps}.ckpt")
        return module

    begun, whole = fit(3), fit(6)
    rest = fit(6, tmp_path / "step_3.ckpt")
    assert whole.seen == list(range(48))
    assert begun.seen + rest.seen == whole.seen
    assert torch.equal(rest.weight, whole.weight)


def test_a_batched_degradation_works_on_what_was_transferred(folder, shade):
    class Kept(Recorder):
        def __init__(self):
            super().__init__()
            self.batches, self.validated = [], []

        def training_step(self, batch, batch_index):
            self.batches.append(batch)
            return super().training_step(batch, batch_index)

        def validation_step(self, batch, batch_index):
            self.validated.append(batch)

    module = Kept()
    trainer = Trainer(
        max_steps=3,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        val_check_interval=3,
        check_val_every_n_epoch=None,
    )
    trainer.fit(module, datamodule=face_data(folder, type(shade)(batched=True)))
    plain = face_data(folder, shade)
    assert_equal(module.batches, first(plain.train_dataloader(), 3))
    assert_equal(module.validated, list(plain.val_dataloader()))
    raw = first(face_data(folder, type(shade)(batched=True)).train_dataloader(), 1)[0]
    assert raw.keys() == {"hq", "parameters", "position", "unreadable"}
    assert isinstance(raw["parameters"]["shade"]["factor"], np.ndarray), "no device or precision touches them"


def test_pipelines_on_the_device_and_in_the_workers_agree(folder):
    def batches(device):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            overrides = ["degradation=light", f"degradation.device={device}", "data=folder", f"data.root={folder}"]
            overrides += ["data.size=16", "data.val_images=2", "data.num_workers=0"]
            data = build(plain(compose("train", overrides=overrides).data, resolve=True))
        return data.on_after_batch_transfer(first(data.train_dataloader(), 1)[0], 0)

    made, expected = batches("gpu"), batches("cpu")
    assert made.keys() == expected.keys()
    assert torch.equal(made["hq"], expected["hq"])
    assert (made["lq"] - expected["lq"]).abs().mean() < 3 / 255


def test_fewer_images_than_a_batch(folder, shade):
    for number in range(3, 7):
        (folder / f"img_{number}.png").unlink()
    data = face_data(folder, shade, batch_size=6, val_images=1)
    batch = first(data.train_dataloader(), 1)[0]
    assert batch["position"].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(data.faces.images.source) == 2
    assert len({tuple(hq.flatten().tolist()) for hq in batch["hq"]}) > 2, "crops and flips differ"


def test_numerical_libraries_stay_on_one_thread_in_a_worker():
    class Threads(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return [torch.get_num_threads(), *(each["num_threads"] for each in threadpool_info())]

    (counts,) = torch.utils.data.DataLoader(Threads(), num_workers=1, worker_init_fn=one_thread)
    assert len(counts) > 1
    assert {int(count) for count in counts} == {1}


def test_a_worker_ends_at_the_second_sigterm():
    class Signalled(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGTERM)
            return index

    batches = iter(torch.utils.data.DataLoader(Signalled(), num_workers=1, worker_init_fn=one_thread, prefetch_factor=1))
    assert next(batches).tolist() == [0]
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|Terminated"):
        next(batches)


def test_everything_can_travel_to_a_spawned_worker(folder, shade):
    data = face_data(folder, shade, source=partial(open_images))
    data.degradation = data.faces.degradation = data.fixed.degradation = None  # a class of the tests can't travel
    assert len(pickle.loads(pickle.dumps(data.fixed))) == len(data.fixed)
    assert pickle.loads(pickle.dumps(data.faces)).cut.size == 16


# roots


def test_root_is_asked_for(shade):
    with pytest.raises(ValueError, match=r"data\.root is not set: A folder of test faces .*\. Give it as data\.root=DIR"):
        face_data(None, shade)


def test_wrong_roots_name_their_key(folder, shade, tmp_path):
    with pytest.raises(ValueError, match=r"data\.root: .*/nowhere does not exist.*A folder of test faces is expected"):
        face_data(tmp_path / "nowhere", shade)
    with pytest.raises(ValueError, match=r"data\.val_root: .*/nowhere does not exist"):
        face_data(folder, shade, val_root=str(tmp_path / "nowhere"))


def test_nothing_left_to_train_on(folder, shade):
    with pytest.raises(ValueError, match=r"data\.val_images=7 leaves nothing .* holds 7 images; hold out 6 at most"):
        face_data(folder, shade, val_images=7)


# configs


def composed(name, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["degradation=demo", f"data={name}", "data.num_workers=0", *overrides])
    return plain(config.data, resolve=True)


def test_all_configs_are_seen():
    assert {"demo", "df2k", "ffhq", "ffhqr", "hggt", "folder", "hf", "pairs"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_accepted(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = check(compose("train", overrides=["model=swinir_ffhq", f"data={name}", "trainer=cpu", "data.root=x"]))
    assert config["data"]["roots"]["root"] == "x"


def pictures(folder, size, count=4):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_pairs_config(tmp_path):
    lq, hq = pictures(tmp_path / "lq", 12), pictures(tmp_path / "hq", 24)
    small = ["data.size=16", "data.val_size=null", "data.val_images=1"]
    with pytest.raises(Exception, match=r"data\.target_root is not set: Two folders .* Give it as data\.target_root=DIR"):
        build(composed("pairs", f"data.root={lq}", *small))
    data = build(composed("pairs", f"data.root={lq}", f"data.target_root={hq}", "data.crop=random", *small))
    batch = first(data.train_dataloader(), 1)[0]
    assert (batch["lq"].shape, batch["hq"].shape) == ((6, 3, 8, 8), (6, 3, 16, 16))
    (validation,) = data.val_dataloader()
    np.testing.assert_array_equal((validation["lq"][0] * 255).round(), np.asarray(Image.open(lq / "3.png")).transpose(2, 0, 1))
    assert validation["hq"].shape == (1, 3, 24, 24)
    with pytest.raises(Exception, match=r"data\.val_target_root is not set"):
        build(composed("pairs", f"data.root={lq}", f"data.target_root={hq}", f"data.val_root={lq}", *small))


def test_ffhqr_config(tmp_path):
    photos, retouched = pictures(tmp_path / "ffhq", 24), tmp_path / "ffhqr"
    retouched.mkdir()
    for file in photos.iterdir():
        Image.fromarray(255 - np.asarray(Image.open(file))).save(retouched / file.name)
    roots = [f"data.root={photos}", f"data.target_root={retouched}", "data.size=24", "data.val_images=1", "data.hflip_prob=0.5"]
    ours = first(build(composed("ffhqr", *roots)).train_dataloader(), 1)[0]
    plain = [each for each in roots if "target" not in each]
    ffhq = first(build(composed("ffhq", *plain)).train_dataloader(), 1)[0]
    assert torch.equal(ours["lq"], ffhq["lq"]), "the LQ is made of the photo"
    torch.testing.assert_close(ours["hq"], 1 - ffhq["hq"])
    with pytest.raises(Exception, match=r"data\.target_root=.* is for paired images: choose data=pairs or data=ffhqr"):
        build(composed("ffhq", *roots))


def test_degradation_null_needs_pairs(folder):
    with pytest.raises(Exception, match=r"data\.degradation=null leaves LQs without HQs: choose data=pairs"):
        build(composed("ffhq", f"data.root={folder}", "data.degradation=null"))


def test_df2k_is_mirrored_and_turned(tmp_path):
    root = pictures(tmp_path / "df2k", 20)
    data = build(composed("df2k", f"data.root={root}", "data.size=20", "data.val_images=3"))
    photo = np.asarray(Image.open(root / "0.png"))
    ways = [np.rot90(each, turns).tobytes() for each in (photo, photo[:, ::-1]) for turns in range(4)]
    seen = [data.faces[position]["hq"].mul(255).round().byte().permute(1, 2, 0).numpy().tobytes() for position in range(100)]
    assert set(seen) == set(ways)
    assert min(seen.count(way) for way in ways) > 3


def test_a_source_is_chosen_on_the_command_line(folder):
    data = build(composed("ffhq", "data/source=folder", f"data.root={folder}", "data.size=16", "data.val_images=2"))
    assert type(data.faces.images.source.whole) is ImageFolder
    sources = sorted(path.stem for path in (CONF / "data" / "source").glob("*.yaml"))
    assert sources == ["auto", "bundled", "folder", "hf", "list", "lmdb", "shards", "tar", "zip"]
    for name in sources:
        composed("ffhq", f"data/source={name}", "data.root=x")


@pytest.mark.parametrize("name", ["ffhq", "folder"])
def test_folder_configs(name, folder):
    with pytest.raises(Exception, match=r"data\.root is not set: A folder"):
        build(composed(name))
    small = composed(name, f"data.root={folder}", "data.size=16", "data.val_images=2")
    data = build(small)
    assert first(data.train_dataloader(), 1)[0]["lq"].shape == (6, 3, 16, 16)
    validation = next(iter(data.val_dataloader()))
    assert validation["hq"].shape == (1, 3, 16, 16)
    np.testing.assert_array_equal((validation["hq"][0] * 255).round(), middle_of(5))


def test_demo_config():
    data = build(composed("demo"))
    lq = first(data.train_dataloader(), 1)[0]["lq"]
    assert lq.shape == (8, 3, 64, 64)
    torch.testing.assert_close(lq * 255, (lq * 255).round(), rtol=0, atol=1e-3)  # quantized, as the LQs of files are
    validation = list(data.val_dataloader())
    assert len(validation) == 8
    assert validation[0]["lq"].shape == (1, 3, 256, 256)


def test_a_worker_outlives_the_thread_that_started_it():
    loader = DataLoader(TensorDataset(torch.arange(8)), num_workers=1, worker_init_fn=one_thread)
    begun = []
    thread = threading.Thread(target=lambda: begun.append(iter(loader)))
    thread.start()
    thread.join()
    assert [int(each) for [each] in begun[0]] == [*range(8)]


def test_there_are_never_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert [at_most_cores(workers) for workers in (0, 6)] == [0, 6]
    with pytest.warns(UserWarning, match="data.num_workers=8: 6 run, as this process has 6 cores"):
        assert at_most_cores(8) == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    with pytest.warns(UserWarning, match="data.num_workers=8: 2 run"):
        assert at_most_cores(8) == 2
