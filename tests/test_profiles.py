"""The dial: three profiles with the same keys and types, and clear errors off the scale."""

from __future__ import annotations

import copy
import pickle

import pytest

from chinese_llama_lab.errors import LabError, ProfileError
from chinese_llama_lab.profiles import current_profile, profiles


def test_there_are_the_three_profiles_the_course_documents() -> None:
    assert list(profiles()) == ["smoke", "course", "gpu"]


def test_every_profile_has_the_same_keys_of_the_same_types() -> None:
    shapes = {
        name: {key: type(value) for key, value in profile.sizes.items()}
        for name, profile in profiles().items()
    }
    assert shapes["smoke"] == shapes["course"] == shapes["gpu"]


def test_numbers_grow_from_smoke_to_gpu_for_the_documents_measured() -> None:
    sizes = [profile["documents_per_corpus"] for profile in profiles().values()]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "course"), ("", "course"), (" smoke ", "smoke"), ("gpu", "gpu")]
)
def test_the_variable_picks_the_profile(
    monkeypatch: pytest.MonkeyPatch, value: str | None, expected: str
) -> None:
    if value is None:
        monkeypatch.delenv("LAB_PROFILE", raising=False)
    else:
        monkeypatch.setenv("LAB_PROFILE", value)
    assert current_profile().name == expected


def test_an_unknown_profile_says_which_exist_and_offers_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_PROFILE", "smok")
    with pytest.raises(ProfileError) as caught:
        current_profile()
    message = str(caught.value)
    assert "'smok'" in message and "smoke, course, gpu" in message and "LAB_PROFILE=smoke" in message


def test_sizes_are_items_and_attributes() -> None:
    profile = profiles()["smoke"]
    assert profile["documents_per_corpus"] == profile.documents_per_corpus == 200


def test_an_unknown_size_lists_those_that_exist() -> None:
    profile = profiles()["smoke"]
    with pytest.raises(ProfileError, match="documents_per_corpus"):
        profile["documents"]
    with pytest.raises(LabError, match="bootstrap_resamples"):
        _ = profile.bootstrap_resample
    assert not hasattr(profile, "no_such_size")


def test_a_profile_cannot_be_changed_and_can_be_copied() -> None:
    profile = profiles()["smoke"]
    with pytest.raises(TypeError):
        profile.sizes["documents_per_corpus"] = 1  # type: ignore[index]
    assert pickle.loads(pickle.dumps(profile)).sizes == profile.sizes
    assert copy.deepcopy(profile).name == "smoke"
    assert repr(profile).startswith("Profile('smoke': ")
