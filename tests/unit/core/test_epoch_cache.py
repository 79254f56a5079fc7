"""The cache of an epoch: one epoch, bounded, and what is used stays."""

from modelkeep_platform.core.epoch_cache import EpochCache


def test_a_value_lives_for_its_epoch() -> None:
    cache: EpochCache[str, int] = EpochCache(2)
    assert cache.get("a", epoch=1) is None
    cache.put("a", 1, epoch=1)
    assert cache.get("a", epoch=1) == 1
    assert cache.get("a", epoch=2) is None
    assert len(cache) == 0
    assert cache.get("a", epoch=1) is None


def test_what_was_used_longest_ago_is_forgotten() -> None:
    cache: EpochCache[str, int] = EpochCache(2)
    for number, key in enumerate("ab"):
        cache.put(key, number, epoch=1)
    assert cache.get("a", epoch=1) == 0
    cache.put("c", 2, epoch=1)
    assert [cache.get(key, epoch=1) for key in "abc"] == [0, None, 2]
    cache.put("a", 9, epoch=1)
    cache.put("d", 3, epoch=1)
    assert [cache.get(key, epoch=1) for key in "acd"] == [9, None, 3]


def test_a_late_reader_of_an_older_epoch_is_not_believed() -> None:
    cache: EpochCache[str, str] = EpochCache(2)
    cache.put("a", "new", epoch=2)
    cache.put("a", "old", epoch=1)
    assert cache.get("a", epoch=2) is None
