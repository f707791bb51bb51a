"""Defaults stand in env/base.env. What compose.yaml falls back to is the same, and every key of the bundle has a line there."""

import re

import pytest

import entrypoint
from bundle import ROOT
from bundle.config import contradictions, envfile
from bundle.config.keys import DERIVED, GATEWAY_WRITTEN, HOST_KEYS, MODELS, MOST_REPLICAS
from bundle.config.settings import WRITTEN

BASE = {entry.key: entry.value for entry in envfile.parse(ROOT / "env" / "base.env")[0]}
COMPOSE = (ROOT / "compose.yaml").read_text() + (ROOT / "docker" / "engine" / "accelerator.yaml").read_text()
FALLBACKS = sorted(set(re.findall(r"\$\{([A-Z][A-Z0-9_]*):-([^}]*)\}", COMPOSE)))
OF_THE_PROFILE = {"IMAGE_TARGET", "IMAGE_ENGINE"}


@pytest.mark.parametrize(("key", "fallback"), [pair for pair in FALLBACKS if BASE.get(pair[0])])
def test_what_compose_falls_back_to_is_the_default_of_base_env(key: str, fallback: str) -> None:
    assert fallback == BASE[key]


def test_every_key_has_its_default_in_base_env_and_nowhere_else() -> None:
    assert set(HOST_KEYS) - set(BASE) == OF_THE_PROFILE | set(WRITTEN) | set(DERIVED) | set(GATEWAY_WRITTEN)


def test_the_seconds_in_which_the_gateway_is_told_are_the_entrypoints() -> None:
    assert contradictions.LEAVE_S == entrypoint.LEAVE_S


def test_no_default_is_a_value_that_its_key_refuses() -> None:
    assert {key: HOST_KEYS[key].fault(value) for key, value in BASE.items() if key in HOST_KEYS and HOST_KEYS[key].fault(value)} == {}


def test_compose_has_an_engine_and_its_gpus_for_every_replica_that_the_settings_allow() -> None:
    for number in range(2, MOST_REPLICAS + 1):
        assert f"engine-{number}: {{<<: *engine, profiles: [replica-{number}]" in COMPOSE
        assert f'device_ids: ["${{HOST_GPUS_{number}:-{number - 1}}}"]' in COMPOSE
    assert f"engine-{MOST_REPLICAS + 1}" not in COMPOSE


def test_the_gateway_has_a_backend_for_every_model_and_in_it_every_replica() -> None:
    text = (ROOT / "docker" / "gateway" / "haproxy.cfg").read_text()
    found = {name: re.findall(r"^    server (\S+) \1:8000$", body, re.MULTILINE)
             for name, body in re.findall(r"^backend (\S+) from engines\n((?:(?:    |\.).*\n)+)", text, re.MULTILINE)}
    assert found == {model: [model, *(f"{model}-{number}" for number in range(2, MOST_REPLICAS + 1))] for model in MODELS}
