"""Finding config files, what they extend and what they require."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compresslens.cli.configs import (
    CONFIG_DIRECTORY,
    config_chain,
    display,
    find_config,
    place_paths,
    read_config,
    refuse_circles,
    requirements,
    run_name,
    shipped_configs,
)
from compresslens.errors import UserError


def write(folder: Path, **files: str) -> dict[str, Path]:
    """Files `<name>.yaml` with the given content; resolved paths by name."""
    paths = {}
    for name, content in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        paths[name] = path.resolve()
    return paths


# Finding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["distill_resnet18.yaml", "distill_resnet18"])
def test_a_bare_name_is_shipped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, distill_resnet18="")
    monkeypatch.chdir(tmp_path)  # which must not matter
    assert find_config(name) == CONFIG_DIRECTORY / "distill_resnet18.yaml"


def test_a_name_with_a_slash_is_a_path_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = "cifar10/distill_resnet18.yaml"
    assert find_config(shipped) == CONFIG_DIRECTORY / shipped
    own = write(tmp_path / "cifar10", distill_resnet18="")["distill_resnet18"]
    assert find_config(shipped) == own
    assert find_config(str(own)) == own
    assert find_config("./cifar10/distill_resnet18") == own


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    own = write(tmp_path, mine="")["mine"]
    assert find_config("~/mine.yaml") == own


def test_the_folder_of_the_naming_file_comes_first_and_the_working_folder_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = write(tmp_path / "a", distill_resnet18="", b="")
    write(tmp_path / "work" / "base", default="", other="")
    monkeypatch.chdir(tmp_path / "work")
    assert find_config("distill_resnet18", tmp_path / "a") == beside["distill_resnet18"]
    assert find_config("base/default.yaml", tmp_path / "a") == CONFIG_DIRECTORY / "base" / "default.yaml"
    with pytest.raises(UserError, match=r"no config 'base/other\.yaml'"):
        find_config("base/other.yaml", tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("distil_resnet18", "distill_resnet18.yaml"), ("cifar10/distil_resnet18.yaml", "cifar10/distill_resnet18.yaml")],
)
def test_the_nearest_shipped_config_is_named(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"^no config .*; did you mean '{nearest}'\?$"):
        find_config(name)


def test_without_anything_near_the_help_is_named() -> None:
    with pytest.raises(UserError, match=r"^no config 'qqqqqqqq\.yaml'; `python train\.py --help` lists"):
        find_config("qqqqqqqq")


def test_a_file_in_the_working_folder_is_hinted_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, mine="")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"did you mean '\./mine\.yaml'\?"):
        find_config("mine.yaml")


def test_shipped_configs_leave_out_the_bases() -> None:
    names = shipped_configs()
    assert {"teacher_resnet34.yaml", "imagenet/distill_efficientnet_lite0.yaml"} <= set(names)
    assert not any(name.startswith("base/") for name in names)
    assert names == sorted(names)


# Reading --------------------------------------------------------------------------------------------------------------


def test_an_empty_file_is_an_empty_config(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, a="# nothing\n")["a"]) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [1", "not valid YAML"), ("- a\n- b", "expected keys and values, found list"), ("a", "found str")],
)
def test_what_is_no_config_is_refused_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, a=content)["a"]
    with pytest.raises(UserError, match=message) as error:
        read_config(path)
    assert "\n" not in str(error.value)
    assert "a.yaml" in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid YAML"):
        read_config(path)


# Extending ------------------------------------------------------------------------------------------------------------


def test_bases_come_first_in_the_order_they_are_named(tmp_path: Path) -> None:
    paths = write(
        tmp_path,
        top="extends: [left, right]\nx: 1",
        left="extends: root.yaml",
        right="extends: [root]\ny: 2",
        root="z: 3",
    )
    chain = config_chain(paths["top"])
    assert [path.stem for path, _ in chain] == ["root", "left", "root", "right", "top"]
    assert chain[-1][1]["x"] == 1


def test_two_levels_are_allowed_and_three_are_not(tmp_path: Path) -> None:
    paths = write(tmp_path, a="extends: b", b="extends: c", c="extends: d", d="")
    assert [path.stem for path, _ in config_chain(paths["b"])] == ["d", "c", "b"]
    with pytest.raises(UserError, match=r"a\.yaml: `extends` goes deeper than 2 levels"):
        config_chain(paths["a"])


@pytest.mark.parametrize("cycle", [{"a": "extends: a"}, {"a": "extends: b", "b": "extends: a"}])
def test_circles_are_refused(cycle: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"extend each other: a\.yaml -> .*a\.yaml"):
        config_chain(write(tmp_path, **cycle)["a"])


@pytest.mark.parametrize("value", ["3", "{a: b}", "[1, 2]"])
def test_extends_and_requires_take_names(value: str, tmp_path: Path) -> None:
    for key in ("extends", "requires"):
        path = write(tmp_path, a=f"{key}: {value}")["a"]
        with pytest.raises(UserError, match=rf"a\.yaml: `{key}` must be the name of a config or a list"):
            requirements(config_chain(path))


# Requiring ------------------------------------------------------------------------------------------------------------


def test_the_last_file_of_the_chain_decides_what_is_required(tmp_path: Path) -> None:
    paths = write(
        tmp_path,
        base="requires: [one, two]",
        one="",
        two="",
        same="extends: base",
        other="extends: base\nrequires: two",
        none="extends: base\nrequires: []",
    )
    assert requirements(config_chain(paths["same"])) == [paths["one"], paths["two"]]
    assert requirements(config_chain(paths["other"])) == [paths["two"]]
    assert requirements(config_chain(paths["none"])) == []


def test_a_missing_requirement_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, a="requires: teacher_resnet43")["a"]
    with pytest.raises(UserError, match=r"no config 'teacher_resnet43\.yaml'; did you mean 'teacher_resnet34\.yaml'\?"):
        requirements(config_chain(path))


def test_requirements_in_a_circle_would_start_processes_without_end(tmp_path: Path) -> None:
    paths = write(tmp_path, a="requires: b", b="requires: [c, a]", c="", d="requires: d")
    refuse_circles(paths["c"])
    for name, message in (("a", r"a\.yaml -> b\.yaml -> a\.yaml"), ("d", r"d\.yaml -> d\.yaml")):
        with pytest.raises(UserError, match=f"configs require each other: {message}"):
            refuse_circles(paths[name])


# Names and paths ------------------------------------------------------------------------------------------------------


def test_runs_of_different_data_sets_have_different_names(tmp_path: Path) -> None:
    assert run_name(CONFIG_DIRECTORY / "teacher_resnet34.yaml") == "teacher_resnet34"
    assert run_name(CONFIG_DIRECTORY / "cifar10" / "teacher_resnet34.yaml") == "cifar10_teacher_resnet34"
    assert run_name(tmp_path / "folder" / "mine.v2.yaml") == "mine.v2"


@pytest.mark.parametrize(
    ("value", "placed"),
    [
        ("runs/teacher/latest", "/big/disk/teacher/latest"),
        ({"a": ["runs/x", 3, None]}, {"a": ["/big/disk/x", 3, None]}),
        ("old_runs/x", "old_runs/x"),
        ("runs", "runs"),
        ("package", "package"),
    ],
)
def test_paths_below_runs_follow_the_folder_of_the_runs(value: Any, placed: Any) -> None:
    assert place_paths(value, "/big/disk/") == placed


def test_home_folders_in_values_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert place_paths({"root": "~/data"}, "runs") == {"root": "/home/somebody/data"}


def test_paths_are_displayed_relative_to_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert display(tmp_path / "a" / "b.yaml") == "a/b.yaml"
    assert display(CONFIG_DIRECTORY / "teacher_resnet34.yaml") == "configs/teacher_resnet34.yaml"
    assert display(Path("/elsewhere/x.yaml")) == "/elsewhere/x.yaml"
