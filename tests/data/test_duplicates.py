"""Hashes of pictures, and near pairs among many."""

import cv2
import numpy as np
import pytest

from data.duplicates import near_duplicates, perceptual_hash
from tests.data.prepare.conftest import textured


def distance(one, other):
    return (int(one, 16) ^ int(other, 16)).bit_count()


def grey_of(rgb):
    return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)


def test_hash_tells_copies_from_others(portrait):
    grey = grey_of(portrait)
    own = perceptual_hash(grey)
    assert len(own) == 64
    coded = cv2.imdecode(cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_GRAYSCALE)
    copies = [coded, cv2.resize(grey, (256, 256), interpolation=cv2.INTER_AREA), cv2.GaussianBlur(grey, (0, 0), 3), grey // 2]
    assert max(distance(own, perceptual_hash(copy)) for copy in copies) <= 10
    others = [grey[:, ::-1], *(grey_of(textured(512, 512, seed)) for seed in range(5))]
    apart = [distance(own, perceptual_hash(other)) for other in others]
    assert min(apart) > 60
    assert np.mean(apart) == pytest.approx(128, abs=24), "of 256 bits half differ by chance"


def test_near_pairs_are_those_that_a_full_search_finds():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (600, 256), dtype=np.uint8)
    bits[300:500] = bits[:200]
    for place in range(300, 500):
        bits[place, rng.choice(256, place % 20, replace=False)] ^= 1  # 0 to 19 bits
    bits[500:520] = bits[0]
    hashes = [row.tobytes().hex() for row in np.packbits(bits, axis=1)]
    apart = (bits[:, None] != bits[None]).sum(axis=2)
    for limit in (0, 7, 15):
        expected = {}
        for place in range(600):
            nearest = int(np.argmin(apart[place, :place])) if place else 0  # the first of equals
            if place and apart[place, nearest] <= limit:
                expected[place] = (nearest, int(apart[place, nearest]))
        assert near_duplicates(hashes, limit) == expected
        assert len(expected) == 20 + {0: 10, 7: 80, 15: 160}[limit]


def test_many_equal_hashes_take_no_time():
    assert near_duplicates(["00" * 32] * 50_000, 15)[49_999] == (0, 0)
    assert near_duplicates([], 3) == {}


def test_the_limit_is_checked():
    with pytest.raises(ValueError, match="max_distance_bits=16: give 0 to 15"):
        near_duplicates([], 16)
