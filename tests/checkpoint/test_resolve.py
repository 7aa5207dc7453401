"""What a run's folder, a published folder and a file stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from occluded_reid.checkpoint.resolve import read_last_checkpoint, read_run_id, resolve_weights
from occluded_reid.utils.errors import UserError


def test_a_published_folder_stands_for_its_one_weights_file(tmp_path: Path) -> None:
    (tmp_path / "fed-0123abcd.pth").touch()
    (tmp_path / "config.yaml").touch()
    config, weights = resolve_weights(tmp_path)
    assert (Path(config).name, Path(weights).name) == ("config.yaml", "fed-0123abcd.pth")
    (tmp_path / "other.pth").touch()
    with pytest.raises(UserError, match="one published .pth file"):
        resolve_weights(tmp_path)
    (tmp_path / "model_final.pth").touch()
    assert Path(resolve_weights(tmp_path)[1]).name == "model_final.pth"


def test_of_a_config_yaml_no_more_is_read_than_a_configuration_has(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"RUN_ID: rone\n" + b" " * 2**18)
    with pytest.raises(UserError, match="config.yaml .*at most 262144 are read"):
        read_run_id(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x80", b"../other/x.pth", b"", b"..", b"a" * 999])
def test_a_last_checkpoint_that_names_no_file_beside_it_is_refused(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "last_checkpoint").write_bytes(content)
    with pytest.raises(UserError, match="last_checkpoint .*write the name of a checkpoint"):
        read_last_checkpoint(tmp_path)
