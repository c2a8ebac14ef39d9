"""Tests of experiment files and run folders."""

import re
from pathlib import Path

import pytest

from deploy.errors import BAD_INPUT, DeployError
from deploy.experiment_files import BUILT_IN_FOLDER, built_in_names, config_to_toml, load_experiment
from deploy.roles import check_experiment
from deploy.run_folder import RunFolder, create_run_folder, locked, open_or_create_run_folder
from zero.config import ExperimentConfig, parse_config

OTHER_CONFIG = r"the run in \S+/run was begun with .*, the config says .*: give --experiment \S+config.toml"


@pytest.mark.parametrize("name", built_in_names())
def test_built_in_experiments_can_be_built_and_hold_only_what_differs(name: str) -> None:
    """Every built-in experiment fits its game, bears its file's name and repeats no default."""
    config = load_experiment(name, [])
    check_experiment(config)
    assert config.name == name
    given = parse_config((BUILT_IN_FOLDER / f"{name}.toml").read_text(), []).model_dump(exclude_unset=True)
    defaults = ExperimentConfig().model_dump()
    for section, values in given.items():
        if isinstance(values, dict):
            assert not [key for key, value in values.items() if value == defaults[section][key]]


@pytest.mark.parametrize("name", built_in_names())
def test_the_effective_config_reads_back_equal(name: str) -> None:
    """What is written into a run is complete and the same config."""
    config = load_experiment(name, ["seed=7", "learner.batch_size=64", "game.options={}"])
    assert parse_config(config_to_toml(config), []) == config


def test_overrides_win_and_the_later_ones_most() -> None:
    """--set changes what the file says."""
    config = load_experiment("tic_tac_toe", ["discount=0.5", "search.num_simulations=3", "search.num_simulations=4"])
    assert (config.discount, config.search.num_simulations) == (0.5, 4)


def test_an_unknown_experiment_names_the_known_ones() -> None:
    """One line says what was given and what is allowed."""
    with pytest.raises(DeployError, match=r"'chess'.*tic_tac_toe, .*triangle") as caught:
        load_experiment("chess", [])
    assert caught.value.exit_code == BAD_INPUT


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    """A new run refuses a folder that holds one, and says how to go on with it."""
    config = load_experiment("triangle", ["seed=3"])
    folder = create_run_folder(tmp_path / "run")
    folder.begin(config)
    assert folder.config() == config
    folder.begin(load_experiment("triangle", []))
    with pytest.raises(DeployError, match="--resume"):
        create_run_folder(tmp_path / "run")
    assert folder.config() == config


def test_a_folder_in_which_no_run_began_serves_the_next(tmp_path: Path) -> None:
    """What failed before it began stands in nobody's way, and is no run."""
    first = create_run_folder(tmp_path / "run")
    run_id = first.run_id()
    with pytest.raises(DeployError, match="name the folder of a run"):
        first.config()
    assert create_run_folder(tmp_path / "run").run_id() == run_id


def test_runs_in_folders_of_one_name_have_their_own_ids(tmp_path: Path) -> None:
    """A run's id stays, and no other run has it."""
    folders = [create_run_folder(tmp_path / parent / "run") for parent in ("a", "b")]
    ids = [folder.run_id() for folder in folders]
    assert ids[0] != ids[1]
    assert all(re.fullmatch("[0-9a-f]{16}", run_id) for run_id in ids)
    assert [RunFolder(folder.path).run_id() for folder in folders] == ids


def test_a_folder_serves_the_same_config_again_and_no_other(tmp_path: Path) -> None:
    """A learner started by hand goes on in its folder, and not in another experiment's."""
    config = load_experiment("triangle", [])
    folder = open_or_create_run_folder(tmp_path / "run", config)
    (folder.checkpoints / "step-000000001").mkdir(parents=True)
    open_or_create_run_folder(tmp_path / "run", config)
    with pytest.raises(DeployError, match=OTHER_CONFIG):
        open_or_create_run_folder(tmp_path / "run", load_experiment("tic_tac_toe", []))
    assert folder.config() == config


def test_a_learner_that_stored_nothing_can_start_again_with_another_config(tmp_path: Path) -> None:
    """Without a checkpoint a folder is free for a corrected command, unless a whole run lives in it."""
    other = load_experiment("tic_tac_toe", [])
    open_or_create_run_folder(tmp_path / "run", load_experiment("triangle", []))
    folder = open_or_create_run_folder(tmp_path / "run", other)
    assert folder.config() == other
    folder.begin_session(other)
    with pytest.raises(DeployError, match=OTHER_CONFIG):
        open_or_create_run_folder(tmp_path / "run", load_experiment("triangle", []))


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    """Resuming what is no run fails in one line that names the folder."""
    with pytest.raises(DeployError, match=str(tmp_path)):
        RunFolder(tmp_path).config()


def test_only_one_command_trains_in_a_folder(tmp_path: Path) -> None:
    """The lock is exclusive while held and free afterwards."""
    folder = create_run_folder(tmp_path / "run")
    with locked(folder), pytest.raises(DeployError, match="in use"), locked(folder):
        pass
    with locked(folder):
        pass
