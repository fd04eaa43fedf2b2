"""HGGT's form: groups and their labels, the drawn target and negative, and a run on them."""

import json
from collections import Counter
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from data.images import UnreadableImage
from data.order import image_at
from data.sources.hggt import Groups, majority
from losses.weighted import Loss
from tests.data.samples import training_faces
from tests.toy import TINY_NETWORK, TINY_RUN
from train.jobs.config import plain
from train.runs.curves import read_rows
from train.trust import build

ROOT = Path(__file__).parents[3]
WORDS = {"P": "Positive", "S": "Similar", "N": "Negative"}
VOTES = {  # group -> what A, B and C call 01, 02, 03 and 04
    "a": "PPN NNP PSN SSS",  # P N S S
    "b": "PPP PSP NPP SPS",  # P P P S
    "c": "NNN SNN PSN NSP",  # N N S S
    "d": "SSS PSN SSP NSS",  # S S S S
    "e": "NPS SPP PSS NNS",  # S P S N
}
POSITIVE = {"a": [1], "b": [1, 2, 3], "c": [0], "e": [2]}  # versions, 0 is the original
NEGATIVE = {"a": [2], "b": [], "c": [1, 2], "e": [4]}


def original(name, height=26, width=30):
    """(h, w, 3) uint8 of multiples of 8, so that a version is known by what it adds."""
    rng = np.random.default_rng(ord(name[0]))
    return rng.integers(0, 31, (height, width, 3), dtype=np.uint8) * 8


def write(root, votes=VOTES, of_set="0-9", **size):
    """A set of the form in which version k is the original plus k."""
    for name, of_versions in votes.items():
        for version, folder in enumerate(("original", "01", "02", "03", "04")):
            file = root / "images" / of_set / folder / f"{name}{'' if version == 0 else f'_{folder}'}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(original(name, **size) + np.uint8(version)).save(file)
        for annotator, column in zip("ABC", zip(*of_versions.split(), strict=True), strict=True):
            label(root, of_set, annotator, name, {f"Picture_{n}": {"Label": WORDS[c]} for n, c in enumerate(column, start=2)})
    return root


def label(root, of_set, annotator, name, pictures):
    file = root / "labels" / of_set / annotator / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(pictures))


@pytest.fixture
def hggt(tmp_path):
    return write(tmp_path / "hggt")


class Kept:
    """A degradation that leaves the LQ as the photo is, so that it shows what the LQ is made of."""

    batched = False

    def sample(self, seed, position, size):
        return {}

    def apply(self, hq, parameters):
        return {"lq": hq}


def samples(root, negatives=True, **changes):
    groups = Groups(root=str(root), negatives=negatives)
    options = {"degradation": Kept(), "crop": "random", "hflip_prob": 0.5, "seed": 3} | changes
    return training_faces(groups, targets=groups.targets, negatives=groups.negatives, **options)


def version(image, lq):
    """Which version an image is of what the LQ shows; fails unless both are cut and mirrored alike."""
    (number,) = ((image - lq) * 255).round().int().unique().tolist()
    return number


# labels


@pytest.mark.parametrize(
    ("votes", "expected"), [("PPP", "P"), ("PSP", "P"), ("NNP", "N"), ("SSN", "S"), ("PSN", "S"), ("NPS", "S")]
)
def test_a_majority_of_three_decides(votes, expected):
    assert majority([WORDS[vote] for vote in votes]) == WORDS[expected]


def numbers(choices):
    """Version numbers of each group, by the names of the files."""
    names = [[Path(choices.whole.name(index)).stem for index in of] for of in choices.of_photo]
    return [[int(name.partition("_0")[2] or 0) for name in of] for of in names]


@pytest.mark.parametrize("of_set", ["0-9", ""])
def test_groups_with_a_positive_or_a_negative(tmp_path, of_set):
    root = write(tmp_path / "x", of_set=of_set)
    both, positive = Groups(root=str(root), negatives=True), Groups(root=str(root), negatives=False)
    assert [Path(path).stem for path in both.paths] == ["a", "b", "c", "e"], "d has Similar ones alone"
    assert [Path(path).stem for path in positive.paths] == ["a", "b", "e"]
    assert numbers(both.targets) == list(POSITIVE.values())
    assert numbers(both.negatives) == list(NEGATIVE.values())
    assert numbers(positive.targets) == [POSITIVE[name] for name in "abe"]
    assert positive.negatives is None
    assert both.name(1) == str(root / "images" / of_set / "original" / "b.png")
    for index, name in enumerate("abce"):
        assert both.read(index) == (root / "images" / of_set / "original" / f"{name}.png").read_bytes()
        assert {Path(both.targets.whole.name(of)).stem.partition("_")[0] for of in both.targets.of_photo[index]} == {name}


def test_several_sets(hggt):
    write(hggt, {"a": "PPP PPP PPP PPP"}, of_set="10-19")
    groups = Groups(root=str(hggt), negatives=False)
    assert groups.paths == [
        f"images/{path}.png" for path in ("0-9/original/a", "0-9/original/b", "0-9/original/e", "10-19/original/a")
    ]
    assert numbers(groups.targets)[-1] == [1, 2, 3, 4]


# samples


def test_the_versions_are_drawn_alike_and_cut_alike(hggt):
    dataset, drawn = samples(hggt), {name: Counter() for name in "abce"}
    for position in range(1200):
        sample = dataset[position]
        target, negative = (version(sample[key], sample["lq"]) for key in ("hq", "negative"))
        assert sample["hq"].shape == sample["negative"].shape == (3, 16, 16)
        name = "abce"[image_at(position, 4, 3)]
        assert (float(sample["has_negative"]), sample["has_negative"].dtype) == (float(bool(NEGATIVE[name])), torch.float32)
        drawn[name][target, negative] += 1
    for name, counts in drawn.items():
        pairs = [(one, other) for one in POSITIVE[name] for other in NEGATIVE[name] or [0]]
        assert set(counts) == set(pairs), name
        assert all(abs(count - 300 / len(pairs)) < 4 * (300 / len(pairs)) ** 0.5 for count in counts.values()), counts


def test_without_negatives_a_sample_is_as_any_other(hggt):
    assert samples(hggt, negatives=False)[0].keys() == {"lq", "hq", "position", "unreadable"}


def test_a_sample_follows_from_seed_and_position(hggt):
    one, two, other = samples(hggt), samples(hggt, keep_decoded=True), samples(hggt, seed=4)
    first = [one[position] for position in range(40)]
    for position in reversed(range(40)):
        again = two[position]
        assert all(torch.equal(again[key], first[position][key]) for key in ("lq", "hq", "negative", "has_negative"))
    assert any(not torch.equal(other[position]["hq"], first[position]["hq"]) for position in range(40))


def test_a_degradation_on_the_device_leaves_them_to_it(hggt, shade):
    plain, batched = samples(hggt, degradation=shade)[5], samples(hggt, degradation=type(shade)(batched=True))[5]
    assert batched.keys() == {"hq", "target", "parameters", "negative", "has_negative", "position", "unreadable"}
    assert torch.equal(batched["target"], plain["hq"])
    assert torch.equal(batched["negative"], plain["negative"])


# the config


def data_of(root, *overrides):
    small = ["degradation=demo", "data.size=16", "data.num_workers=0", "data.batch_size=4", "data.val_images=2"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=["data=hggt", f"data.root={root}", *small, *overrides])
    data = build(plain(config.data, resolve=True))
    data.faces.degradation = data.fixed.degradation = Kept()
    return data


def test_workers_change_nothing_and_all_are_turned_alike(hggt):
    negatives = "data.source.negatives=true"
    none, two = (list(islice(data_of(hggt, negatives, f"data.num_workers={count}").train_dataloader(), 3)) for count in (0, 2))
    for ours, theirs in zip_longest(none, two):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours.keys() | theirs.keys())
        assert (ours["negative"].shape, ours["has_negative"].shape) == ((4, 3, 16, 16), (4,))
        assert all(
            version(image, lq) in range(5)
            for key in ("hq", "negative")
            for image, lq in zip(ours[key], ours["lq"], strict=True)
        )


def test_the_last_groups_are_held_out_with_their_first_positive(hggt):
    data = data_of(hggt, "data.source.negatives=true")
    assert [Path(data.faces.images.source.name(index)).stem for index in range(2)] == ["a", "b"]
    assert numbers(data.faces.images.targets) == [POSITIVE["a"], POSITIVE["b"]]
    assert numbers(data.faces.images.negatives) == [NEGATIVE["a"], NEGATIVE["b"]]
    c, e = data.val_dataloader()
    np.testing.assert_array_equal((c["lq"][0] * 255).round(), original("c").transpose(2, 0, 1))
    assert (version(c["hq"], c["lq"]), version(e["hq"], e["lq"])) == (0, 2)
    assert "negative" not in c


def test_the_first_groups_keep_their_versions(hggt):
    data = data_of(hggt, "data.source.negatives=true", "data.val_images=1", "data.first=2")
    assert [Path(data.faces.images.source.name(index)).stem for index in range(2)] == ["a", "b"]
    assert numbers(data.faces.images.targets) == [POSITIVE["a"], POSITIVE["b"]]
    assert numbers(data.faces.images.negatives) == [NEGATIVE["a"], NEGATIVE["b"]]
    (e,) = data.val_dataloader()
    assert version(e["hq"], e["lq"]) == 2


def test_a_root_of_the_same_form_to_validate_on(hggt, tmp_path):
    write(tmp_path / "val", {"b": VOTES["b"]}, of_set="")
    data = data_of(hggt, f"data.val_root={tmp_path / 'val'}")
    assert len(data.faces.images.source) == 3
    (b,) = data.val_dataloader()
    assert version(b["hq"], b["lq"]) == 1
    np.testing.assert_array_equal((b["hq"][0] * 255).round(), original("b").transpose(2, 0, 1) + 1)


# errors


def refused(root, match, negatives=False):
    with pytest.raises(ValueError, match=match):
        Groups(root=str(root), negatives=negatives)


def test_missing_folders(hggt, tmp_path):
    refused(tmp_path / "nowhere", r"nowhere does not exist .*: give the folder that holds HGGT's images and labels")
    refused(hggt / "labels", r"labels lacks the folders images/original, images/01, images/02 and 5 more: give the folder that")
    (hggt / "labels" / "0-9").rename(hggt / "labels" / "0-8")
    refused(hggt, r"hggt lacks the folders labels/0-9/A, labels/0-9/B, labels/0-9/C: give")
    with pytest.raises(Exception, match=r"data\.root: .* lacks the folders .*\. A folder with images and labels is expected"):
        data_of(hggt)
    with pytest.raises(Exception, match=r"data\.root is not set: A folder with images and labels is expected, the Train or"):
        data_of("null")


def test_missing_files_of_groups(hggt):
    (hggt / "images" / "0-9" / "03" / "a_03.png").unlink()
    (hggt / "images" / "0-9" / "original" / "e.png").unlink()
    (hggt / "labels" / "0-9" / "C" / "e.json").unlink()
    refused(
        hggt,
        r"3 files of 2 of the 5 groups are missing \(images/0-9/03/a_03\.png, images/0-9/original/e\.png, "
        r"labels/0-9/C/e\.json\): each needs an original, its versions 01 to 04, and labels of A, B and C; add these, or",
    )


def test_unknown_labels(hggt):
    label(
        hggt,
        "0-9",
        "B",
        "c",
        {f"Picture_{n}": {"Label": word} for n, word in zip("2345", ["Positive", "good", "Similar", None], strict=True)},
    )
    refused(hggt, r"B/c\.json calls Picture_3 'good', Picture_5 None: a label is Positive, Similar or Negative; correct it")


@pytest.mark.parametrize(
    ("pictures", "lacking"),
    [
        ({"Picture_2": {"Label": "Similar"}, "Picture_4": {}, "Picture_5": "Similar"}, "Picture_3, Picture_4, Picture_5"),
        ([], "Picture_2, Picture_3, Picture_4, Picture_5"),
    ],
)
def test_labels_that_lack_a_picture(hggt, pictures, lacking):
    label(hggt, "0-9", "A", "b", pictures)
    refused(hggt, rf"A/b\.json has no Label of {lacking}: fetch it again, or take its group out")


@pytest.mark.parametrize("text", ["", "{'Picture_2': 1}", "\xff\xfe"])
def test_labels_that_are_no_json(hggt, text):
    (hggt / "labels" / "0-9" / "A" / "b.json").write_bytes(text.encode("latin-1"))
    refused(hggt, r"A/b\.json is no JSON \(.*\): fetch it again, or take its group out")


def test_no_group_left(tmp_path):
    root = write(tmp_path / "x", {"c": VOTES["c"], "d": VOTES["d"]})
    assert len(Groups(root=str(root), negatives=True)) == 1
    refused(root, r"x holds 2 groups, and none has a version that is Positive to two .*, or set data\.source\.negatives=true")
    refused(
        write(tmp_path / "y", {"d": VOTES["d"]}),
        r"y holds 1 groups, and none .* that is Positive or Negative to two .* labels$",
        True,
    )


def test_sizes_that_differ_and_images_that_cannot_be_read(hggt, tmp_path):
    root = write(tmp_path / "one", {"a": VOTES["a"]})
    Image.fromarray(original("a", 20, 30)).save(root / "images" / "0-9" / "02" / "a_02.png")
    with pytest.raises(
        ValueError, match=r"original/a\.png is 30x26 and its negative 30x20: a negative must be of the photo's size"
    ):
        samples(root)[0]
    Image.fromarray(original("a", 20, 30)).save(root / "images" / "0-9" / "01" / "a_01.png")
    with pytest.raises(
        ValueError, match=r"original/a\.png is 30x26 and its target 30x20: a target must be of the photo's size"
    ):
        samples(root)[0]
    (root / "images" / "0-9" / "01" / "a_01.png").write_bytes(b"gone")
    with pytest.raises(UnreadableImage, match=r"01/a_01\.png"):
        samples(root)[0]


def test_targets_of_their_own_are_enough(hggt):
    with pytest.raises(Exception, match=r"data\.target_root=.*: data\.root=.*hggt brings targets of its own: leave one out"):
        data_of(hggt, "data.paired=true", f"data.target_root={hggt}")


# runs


class Away(Loss):
    """Distance to the negative, where there is one."""

    def forward(self, restored: torch.Tensor, negative: torch.Tensor, has_negative: torch.Tensor) -> torch.Tensor:
        assert has_negative.dtype == torch.float32
        assert negative.shape == restored.shape
        return (has_negative[:, None, None, None] * (restored - negative).abs()).mean()


RUN = ["experiment=demo", "data=hggt", "data.size=16", "data.val_images=1", "data.batch_size=2", "data.num_workers=0"]
RUN += [
    *TINY_NETWORK,
    *TINY_RUN,
    "validation.lpips=null",
    "+loss.terms.away={_target_: tests.data.sources.test_hggt.Away, weight: 0.1}",
]
GAN = "+loss.terms.gan={_target_: losses.adversarial.Adversarial, weight: 0.1, kind: vanilla, of: image, adaptive_at: null}"
ADVERSARY = ["task=adversarial", "adversary=unet_sn", "adversary.discriminators.image.network.num_feat=4", GAN]


@pytest.mark.parametrize("against", [[], ADVERSARY], ids=["regression", "adversarial"])
def test_two_updates_with_a_term_of_the_negatives(cli, tmp_path, against):
    root = write(tmp_path / "set", {"a": VOTES["a"], "c": VOTES["c"], "e": VOTES["e"]}, height=32, width=32)
    code, printed = cli(*RUN, *against, f"data.root={root}", "data.source.negatives=true")
    assert code == 0, printed
    rows = read_rows(tmp_path / "runs" / "demo" / "metrics.csv")
    rows = [row for row in rows if row.get("train/away")]
    values = [float(row["train/away"]) for row in rows]
    assert len(values) == 2
    for row in rows:  # all with weight 1, but for the two of 0.1
        terms = {
            key: float(value) for key, value in row.items() if key in ("train/charbonnier", "train/away", "train/gan") and value
        }
        wanted = sum(value * (1 if key == "train/charbonnier" else 0.1) for key, value in terms.items())
        assert float(row["train/loss"]) == pytest.approx(wanted, rel=1e-5)
    assert min(values) > 0
    assert json.loads((tmp_path / "runs" / "demo" / "summary.json").read_text())["step"] == 2


def test_a_term_of_negatives_on_data_without_any(cli, tmp_path):
    root = write(tmp_path / "set", height=32, width=32)
    code, printed = cli(*RUN, f"data.root={root}")
    assert code == 1, printed
    assert (
        "loss.terms.away needs ['negative', 'has_negative'], but RegressionTask on data without negatives (data=hggt "
        "data.source.negatives=true has some) offers only ['hq', 'lq', 'restored']: remove the term (~loss.terms.away)"
    ) in printed
    assert "Traceback" not in printed
