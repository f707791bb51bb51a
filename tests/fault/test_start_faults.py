"""A start that cannot succeed: exit 4, the engine's own words, the next thing to do, and no crash loop left behind."""

from support.project import Project


def test_an_engine_that_cannot_start_is_named_with_its_own_error_and_stopped(project: Project) -> None:
    up = project.up("--set", "ENGINE_MAX_MODEL_LEN=1048576")  # more than the self-test model was made for
    assert up.returncode == 4, up.stderr
    assert "max_model_len" in up.stderr
    assert "lower ENGINE_MAX_MODEL_LEN" in up.stderr
    assert "waiting longer will not help" in up.stderr
    assert {c.state for c in project.containers().values()} == {"exited"}


def test_an_engine_killed_for_memory_is_named_as_such(project: Project) -> None:
    up = project.up("--set", "HOST_ENGINE_MEMORY=700m", "--set", "HOST_SHM_SIZE=256m")
    assert up.returncode == 4, up.stderr
    assert "ran out of memory" in up.stderr
    assert "HOST_ENGINE_MEMORY" in up.stderr


def test_a_start_slower_than_its_limit_says_how_far_it_came(project: Project) -> None:
    up = project.up("--set", "HOST_READY_TIMEOUT_S=4")
    assert up.returncode == 4, up.stderr
    assert "not ready after 4 s" in up.stderr
    assert "HOST_READY_TIMEOUT_S" in up.stderr
