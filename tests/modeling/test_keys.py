"""Keys that a method does not read: one warning, and none of them in a run's config.yaml."""

from __future__ import annotations

import logging

import pytest
import yaml

from occluded_reid.config import leaves, load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.config.resume import find_changes
from occluded_reid.modeling.keys import dump_config, list_unread_keys, warn_of_unread_keys

FED = "projects/FED/configs/synthetic.yml"
AONET = "projects/AONet/configs/synthetic.yml"


def load(path: str, *overrides: str):
    return load_config(path, ["MODEL.DEVICE", "cpu", *overrides], add_keys=installed_methods())


@pytest.mark.parametrize(
    ("path", "read", "unread"),
    [
        (FED, ["HEADS.NUM_CLASSES", "FED.NECK"], ["HEADS.WITH_BNNECK", "AONET.NECK"]),
        (FED, ["BACKBONE.NAME"], ["LOSSES.NAME", "LOSSES.TRI.MARGIN", "QUEUE_SIZE"]),
        (AONET, ["LOSSES.TRI.MARGIN", "AONET.NECK"], ["LOSSES.NAME", "LOSSES.CE.EPSILON"]),
        ("configs/synthetic_baseline.yml", ["LOSSES.NAME", "HEADS.WITH_BNNECK"], []),
    ],
)
def test_a_method_reads_what_it_declares(path, read, unread):
    found = list_unread_keys(load(path))
    assert all(f"MODEL.{key}" in found for key in unread)
    assert not any(f"MODEL.{key}" in found for key in read)


def test_a_resumed_run_may_differ_where_nothing_reads():
    saved = {"MODEL": {"HEADS": {"WITH_BNNECK": True}, "FED": {"NECK": False}}}
    changes = find_changes(saved, dump_config(load(FED)))
    assert [change.key for change in changes] == ["MODEL.FED.NECK"]
    assert list_unread_keys(load(FED, "MODEL.META_ARCHITECTURE", "Mistyped")) == []


def test_what_is_set_and_not_read_is_named_once(caplog):
    logging.getLogger("occluded_reid").propagate = True
    keys = ("MODEL.LOSSES.CE.EPSILON", "0.1", "MODEL.HEADS.POOL_LAYER", "Identity")
    cfgs = load(FED, *keys), load(FED, "MODEL.FED.NECK", "False")
    caplog.clear()  # of what loading says
    with caplog.at_level(logging.WARNING):
        warn_of_unread_keys(cfgs[0])
        (message,) = {record.getMessage() for record in caplog.records}
        assert message == (
            "MODEL.META_ARCHITECTURE FED does not read MODEL.HEADS.POOL_LAYER, "
            "MODEL.LOSSES.CE.EPSILON: what is set there changes nothing"
        )
        caplog.clear()
        warn_of_unread_keys(cfgs[1])
        warn_of_unread_keys(load("configs/synthetic_baseline.yml", *keys))
    assert caplog.records == []


def test_a_dump_holds_the_other_keys_and_reads_as_the_same(tmp_path):
    cfg = load(FED, "MODEL.FED.NUM_NEIGHBORS", "3")
    text = dump_config(cfg)
    content = yaml.safe_load(text)
    assert "LOSSES" not in content["MODEL"] and "AONET" not in content["MODEL"]
    assert list(content["MODEL"]["HEADS"]) == ["NUM_CLASSES"]
    (tmp_path / "config.yaml").write_text(text)
    again = load(str(tmp_path / "config.yaml"))
    assert again == cfg
    left_out = {key for key, _ in leaves(cfg)} - {key for key, _ in leaves(content)}
    assert left_out == set(list_unread_keys(cfg))
