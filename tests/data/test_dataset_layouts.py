"""Each published layout, on generated trees of tiny images with the true names."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from occluded_reid.data.datasets.base import DatasetNotFound
from occluded_reid.data.datasets.dukemtmc import DukeMTMC, OccludedDuke
from occluded_reid.data.datasets.layout import list_candidates, resolve_case
from occluded_reid.data.datasets.market1501 import Market1501
from occluded_reid.data.datasets.p_dukemtmc import PDukeMTMC
from occluded_reid.data.datasets.registry import build_dataset, summarize
from occluded_reid.data.datasets.two_sided import TwoSided
from occluded_reid.data.prepare.doctor import diagnose
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.tables import check_inside

DUKE = {
    "bounding_box_train": ["0001_c2_f0046182.jpg", "0001_c8_f0046302.jpg", "0005_c1_f0046302.jpg"],
    "query": ["0019_c1_f0051230.jpg", "0020_c1_f0051230.jpg"],
    "bounding_box_test": ["0019_c1_f0051230.jpg", "0019_c2_f0051350.jpg", "0020_c3_f0051350.jpg"],
}
FORMATS = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}


def write(folder: Path, names: list[str]) -> None:
    """Write images; each has bytes of its own."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        color = tuple(hash(str(path)) >> shift & 255 for shift in (0, 8, 16))
        Image.new("RGB", (4, 8), color).save(path, FORMATS[path.suffix.lower()])


def write_tree(home: Path, tree: dict[str, list[str]]) -> None:
    for folder, names in tree.items():
        write(home / folder, names)


def read(name: str, root: Path, **options: object):
    return build_dataset(name, root=str(root), allow_partial=True, **options)


def sides_of(dataset) -> list[list[tuple]]:
    """(File name, identity, camera) of queries, then of the gallery."""
    return [
        [(os.path.basename(path), pid, camid) for path, pid, camid in items]
        for items in (dataset.query, dataset.gallery)
    ]


@pytest.mark.parametrize("layout", [*OccludedDuke.layouts, "occluded_duke", "Occluded_Duke/inner"])
def test_occluded_duke_in_each_layout(tmp_path: Path, layout: str) -> None:
    write_tree(tmp_path / layout, DUKE)
    dataset = read("OccludedDuke", tmp_path)
    assert [item[1:] for item in dataset.train] == [
        ("dukemtmc_0001", "dukemtmc_01"),
        ("dukemtmc_0001", "dukemtmc_07"),
        ("dukemtmc_0005", "dukemtmc_00"),
    ]
    assert sides_of(dataset) == [
        [("0019_c1_f0051230.jpg", 19, 0), ("0020_c1_f0051230.jpg", 20, 0)],
        [
            ("0019_c1_f0051230.jpg", 19, 0),
            ("0019_c2_f0051350.jpg", 19, 1),
            ("0020_c3_f0051350.jpg", 20, 2),
        ],
    ]


def make_duke(root: Path) -> Path:
    write_tree(root / "DukeMTMC-reID", DUKE)
    return root


@pytest.mark.parametrize("layout", ["DukeMTMC-reID", "dukemtmc-reid/DukeMTMC-reID"])
def test_duke_is_ours_and_not_the_hosts(tmp_path: Path, layout: str) -> None:
    write_tree(tmp_path / "2024_c9_x" / layout, DUKE)
    dataset = read("DukeMTMC", tmp_path / "2024_c9_x")
    assert isinstance(dataset, DukeMTMC) and not isinstance(dataset, OccludedDuke)
    assert summarize(dataset)["train"] == {"images": 3, "identities": 2, "cameras": 3}


OCCLUDED_REID = {
    "per identity": {
        "occluded_body_images": ["001/001_01.tif", "001/001_05.tif", "200/200_03.tif"],
        "whole_body_images": ["001/001_01.tif", "200/200_05.tif"],
    },
    "flat jpg": {
        "occluded_body_images": ["001_01.jpg", "001_05.JPG", "200_03.jpg"],
        "whole_body_images": ["001_01.png", "200_05.png"],
    },
    "renamed": {
        "query": ["0001_c1s1_000001.jpg", "0001_c3s1_000005.jpg", "0200_c3s1_000003.jpg"],
        "bounding_box_test": ["0001_c1s1_000001.jpg", "0200_c5s1_000005.jpg"],
    },
    "fast-reid": {
        "query": ["001_01.jpg", "001_05.jpg", "200_03.jpg"],
        "gallery": ["001_01.jpg", "200_05.jpg"],
    },
}


@pytest.mark.parametrize("form", OCCLUDED_REID)
@pytest.mark.parametrize("layout", ["Occluded_REID", "OccludedREID", "Occluded-REID"])
def test_occluded_reid_takes_no_image_number_for_a_camera(
    tmp_path: Path, layout: str, form: str
) -> None:
    write_tree(tmp_path / layout, OCCLUDED_REID[form])
    dataset = read("OccludedREID", tmp_path)
    query, gallery = sides_of(dataset)
    assert [item[1:] for item in query] == [(1, 0), (1, 0), (200, 0)]
    assert [item[1:] for item in gallery] == [(1, 1), (200, 1)]
    assert dataset.train == []


@pytest.mark.parametrize("layout", ["Partial-REID_Dataset", "Partial_REID", "PartialREID"])
def test_protocols_of_partial_reid(tmp_path: Path, layout: str) -> None:
    tree = {
        "occluded_body_images": ["001_001.jpg", "060_005.jpg"],
        "partial_body_images": ["001_002.jpg"],
        "whole_body_images": ["001_001.jpg", "060_001.jpg"],
    }
    write_tree(tmp_path / layout, tree)
    for name, queries in (
        ("PartialREID", [("001_001.jpg", 1, 0), ("060_005.jpg", 60, 0)]),
        ("PartialREID:occluded", [("001_001.jpg", 1, 0), ("060_005.jpg", 60, 0)]),
        ("PartialREID:partial", [("001_002.jpg", 1, 0)]),
    ):
        gallery = [("001_001.jpg", 1, 1), ("060_001.jpg", 60, 1)]
        assert sides_of(read(name, tmp_path)) == [queries, gallery]
    assert read("PartialREID", tmp_path, protocol="partial").protocol == "partial"


@pytest.mark.parametrize(
    ("protocol", "tree"),
    [
        ("whole", {"partial_iLIDS_Probe_nocrop": ["001.jpg", "119.jpg"], "Gallery": ["1.jpg"]}),
        ("crop", {"Probe": ["1.jpg", "119.jpg"], "Gallery": ["1.jpg"]}),
        ("crop", {"query": ["1_1.jpg", "119_1.jpg"], "gallery": ["1_2.jpg"]}),
        ("whole", {"query": ["1_1.jpg", "119_1.jpg"], "gallery": ["1_2.jpg"]}),
        ("crop", {"partial_body_images": ["1.jpg", "119.jpg"], "whole_body_images": ["1.jpg"]}),
    ],
)
@pytest.mark.parametrize("layout", ["Partial_iLIDS", "PartialiLIDS"])
def test_partial_ilids_in_each_layout(
    tmp_path: Path, layout: str, protocol: str, tree: dict, caplog: pytest.LogCaptureFixture
) -> None:
    write_tree(tmp_path / layout, tree)
    dataset = read(f"PartialiLIDS:{protocol}", tmp_path)
    query, gallery = sides_of(dataset)
    assert sorted(item[1:] for item in query) == [(1, 0), (119, 0)]
    assert [item[1:] for item in gallery] == [(1, 1)]
    implied = bool(tree.keys() & {"partial_iLIDS_Probe_nocrop", "Probe"})
    assert ("do not show whether the queries are cropped" in caplog.text) is not implied


def test_cropped_queries_are_not_taken_for_whole_ones(tmp_path: Path) -> None:
    home = tmp_path / "Partial_iLIDS"
    write_tree(home, {"Probe": ["1.jpg"], "Gallery": ["1.jpg"]})
    (home / "Probe.txt").write_text("Probe/1.jpg\n")
    (home / "Gallery.txt").write_text("Gallery/1.jpg\n")
    with pytest.raises(DatasetNotFound, match="partial_iLIDS_Probe_nocrop and Gallery"):
        read("PartialiLIDS", tmp_path)
    assert read("PartialiLIDS:crop", tmp_path).protocol == "crop"


def test_lists_of_partial_ilids(tmp_path: Path) -> None:
    home = tmp_path / "Partial_iLIDS"
    write(home / "images", ["p 1.jpg", "1.jpg", "2.jpg", "3.jpg"])
    (home / "Probe.txt").write_bytes(b"images\\1.jpg\r\n\r\nimages/2.jpg\r\n")
    (home / "Gallery.txt").write_text("images/3.jpg\nimages/4.jpg\n")
    dataset = read("PartialiLIDS", tmp_path)
    assert sides_of(dataset) == [[("1.jpg", 1, 0), ("2.jpg", 2, 0)], [("3.jpg", 3, 1)]]
    (home / "Probe.txt").write_text("../../elsewhere/1.jpg\n")
    with pytest.raises(UserError, match=r"Probe.txt names '../../elsewhere/1.jpg', which lies out"):
        read("PartialiLIDS", tmp_path)


P_DUKE = {
    "train/whole_body_images": ["0001/0001_c2_f0046182.jpg", "0005/0005_c8_f0046302.jpg"],
    "train/occluded_body_images": ["0001/0001_c3_f0046302.jpg"],
    "test/whole_body_images": ["0019/0019_c5_f0051350.jpg", "0020/0020_c6_f0051350.jpg"],
    "test/occluded_body_images": ["0019/0019_c1_f0051230.jpg"],
}


@pytest.mark.parametrize("layout", ["P-DukeMTMC-reID", "P-DukeMTMC-reid", "P_DukeMTMC"])
def test_cameras_of_p_dukemtmc(tmp_path: Path, layout: str) -> None:
    write_tree(tmp_path / layout, P_DUKE)
    binary, real = read("PDukeMTMC", tmp_path), read("PDukeMTMC:cameras", tmp_path)
    assert [item[1:] for item in binary.query + binary.gallery] == [(19, 0), (19, 1), (20, 1)]
    assert [item[1:] for item in real.query + real.gallery] == [(19, 0), (19, 4), (20, 5)]
    assert (binary.protocol, real.protocol) == ("binary", "cameras")
    labels = [("pdukemtmc_0001", "pdukemtmc_02"), ("pdukemtmc_0001", "pdukemtmc_01")]
    assert [item[1:] for item in real.train] == [*labels, ("pdukemtmc_0005", "pdukemtmc_07")]


def make_msmt17(home: Path, train: str, test: str) -> Path:
    lists = {
        "list_train.txt": (train, ["0000/0000_000_01_0303morning_0008_0.jpg 0"]),
        "list_val.txt": (train, ["0000/0000_001_15_0303noon_0009_0.jpg 0"]),
        "list_query.txt": (test, ["0000/0000_000_02_0303morning_0008_0.jpg 0"]),
        "list_gallery.txt": (test, ["0000/0000_002_03_0303morning_0008_0.jpg 0"]),
    }
    for name, (folder, lines) in lists.items():
        write(home / folder, [line.split(" ")[0] for line in lines])
        lines.append("0001/0001_000_01_0303morning_0001_0.jpg 1")  # not on the disk
        (home / name).write_text("\n".join(lines) + "\n")
    return home


@pytest.mark.parametrize(
    ("layout", "train", "test"),
    [
        ("MSMT17_V1", "train", "test"),
        ("MSMT17_V2", "mask_train_v2", "mask_test_v2"),
        ("msmt17/MSMT17_V1", "train", "test"),
    ],
)
def test_msmt17_in_each_version(tmp_path: Path, layout: str, train: str, test: str) -> None:
    make_msmt17(tmp_path / "2024_7_x" / layout, train, test)
    dataset = read("MSMT17", tmp_path / "2024_7_x")
    assert [item[1:] for item in dataset.train] == [("msmt17_0000", "msmt17_00")]
    assert [side[0][1:] for side in sides_of(dataset)] == [(1, 1), (1, 2)]
    combined = read("MSMT17", tmp_path / "2024_7_x", combineall=True)
    assert sorted(item[1:] for item in combined.train) == [
        ("msmt17_0000", "msmt17_00"),
        ("msmt17_0000", "msmt17_14"),
        ("msmt17_test_1", "msmt17_test_1"),
        ("msmt17_test_1", "msmt17_test_2"),
    ]


def test_links_in_circles_do_not_hold_msmt17_up(tmp_path: Path) -> None:
    home = make_msmt17(tmp_path / "MSMT17_V1", "train", "test")
    for name in "abc":
        (home / "train" / name).symlink_to(".")
    start = time.process_time()
    assert len(read("MSMT17", tmp_path).train) == 1
    assert time.process_time() - start < 2


@pytest.mark.parametrize("line", ["1_1_01_x.jpg", "1_1_01_x.jpg one", "0000/0000.jpg 0"])
def test_lines_of_msmt17_that_say_nothing_are_named(tmp_path: Path, line: str) -> None:
    home = make_msmt17(tmp_path / "MSMT17_V1", "train", "test")
    (home / "list_query.txt").write_text(f"\n{line}\n")
    with pytest.raises(
        UserError, match=r"list_query.txt, line 1: .* not of the form '0000/0000_000"
    ):
        read("MSMT17", tmp_path)
    (home / "list_query.txt").write_text("0000/0000_000_16_0303morning_0008_0.jpg 0\n")
    with pytest.raises(UserError, match="list_query.txt, line 1: there is no camera 16"):
        read("MSMT17", tmp_path)


TREES = {
    "OccludedDuke": ("Occluded_Duke", DUKE),
    "DukeMTMC": ("DukeMTMC-reID", DUKE),
    "OccludedREID": ("Occluded_REID", OCCLUDED_REID["per identity"]),
    "PartialREID": (
        "Partial_REID",
        {"occluded_body_images": ["001_001.jpg"], "whole_body_images": ["001_001.jpg"]},
    ),
    "PartialiLIDS": (
        "Partial_iLIDS",
        {"partial_iLIDS_Probe_nocrop": ["001.jpg"], "Gallery": ["1.jpg"]},
    ),
    "PDukeMTMC": ("P-DukeMTMC-reID", P_DUKE),
}
PUBLISHED = {
    "OccludedDuke": [(15618, 702), (2210, 519), (17661, 1110)],
    "DukeMTMC": [(16522, 702), (2228, 702), (17661, 1110)],
    "Market1501": [(12936, 751), (3368, 750), (15913, 750)],
    "MSMT17": [(30248, 1041), (11659, 3060), (82161, 3060)],
    "OccludedREID": [(1000, 200), (1000, 200)],
    "PartialREID": [(300, 60), (300, 60)],
    "PartialiLIDS": [(119, 119), (119, 119)],
    "PDukeMTMC": [(12927, 665), (2163, 634), (9053, 634)],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_counts_than_published_are_refused_with_both(tmp_path: Path, name: str) -> None:
    if name == "MSMT17":
        make_msmt17(tmp_path / "MSMT17_V1", "train", "test")
    elif name == "Market1501":
        write_tree(tmp_path / "Market-1501", {f: ["0001_c1s1_1_1.jpg"] for f in DUKE})
    else:
        folder, tree = TREES[name]
        write_tree(tmp_path / folder, tree)
    actual = summarize(read(name, tmp_path))
    with pytest.raises(UserError) as refusal:
        build_dataset(name, root=str(tmp_path))
    subsets = ("train", "query", "gallery")[-len(PUBLISHED[name]) :]
    for subset, (images, identities) in zip(subsets, PUBLISHED[name], strict=True):
        has = f"{actual[subset]['images']} images of {actual[subset]['identities']} identities"
        assert f"{subset} has {has}, expected {images} images of {identities} identities" in str(
            refusal.value
        )


@pytest.mark.parametrize("name", TREES)
def test_what_systems_leave_behind_does_no_harm(tmp_path: Path, name: str) -> None:
    """Nested once more, in another case, spaces above, links, __MACOSX, Thumbs.db, junk."""
    folder, tree = TREES[name]
    plain, strange = tmp_path / "plain", tmp_path / "my 2024_c3_reid data"
    write_tree(plain / folder, tree)
    home = strange / folder.upper() / folder
    for part, names in tree.items():
        changed = home / part.swapcase()
        write(changed, names)
        for place in {changed / Path(name).parent for name in names}:
            for left in ("Thumbs.db", ".DS_Store", "._0001_c1_f0000001.jpg", "._001_01.tif"):
                (place / left).write_bytes(b"")
            write(place, ["-1_c1_f0046182.jpg", "cover.jpg"])
        write(changed / "__MACOSX", ["0001_c1_f0000001.jpg"])
    (strange / folder.upper() / "__MACOSX").mkdir()
    link = tmp_path / "link"
    link.symlink_to(strange, target_is_directory=True)
    before = sorted(strange.rglob("*"))
    expected = read(name, plain)
    for root in (strange, link, home):
        dataset = read(name, root)
        assert sides_of(dataset) == sides_of(expected)
        assert [item[1:] for item in dataset.train] == [item[1:] for item in expected.train]
    assert sorted(strange.rglob("*")) == before  # a loader writes nothing: media may be read-only


@pytest.mark.parametrize("name", TREES)
def test_folders_of_which_no_name_can_be_read_are_faults(tmp_path: Path, name: str) -> None:
    folder, tree = TREES[name]
    write_tree(tmp_path / folder, {part: ["person 1.jpg"] for part in tree})
    dataset = read(name, tmp_path)
    diagnosis = diagnose(dataset)
    named = f"{len(tree)} images are not named like {dataset.example}, so none of them is read"
    assert any(fault.startswith(f"{named} (person 1.jpg") for fault in diagnosis.faults)
    assert diagnosis.tables[1].count("| NOT READ") == len(tree)
    assert dataset.pattern.match(dataset.example)


@pytest.mark.parametrize("name", [*TREES, "MSMT17"])
def test_sets_that_are_not_there_say_where_they_were_looked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetNotFound) as refusal:
        read(name, tmp_path)
    place = TREES[name][0] if name != "MSMT17" else "MSMT17_V1"
    for words in (name, f"{tmp_path}/{place}\n", "FASTREID_DATASETS"):
        assert words in str(refusal.value)


def test_folders_that_cannot_be_listed_are_named(tmp_path: Path) -> None:
    home = tmp_path / "Occluded_Duke"
    write_tree(home, DUKE)
    listdir = os.listdir

    def refuse(folder: os.PathLike[str]) -> list[str]:
        if Path(folder).name == "query":
            raise PermissionError(13, "Permission denied")
        return listdir(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        with pytest.raises(UserError, match=r"cannot read .*query \(Permission denied\)"):
            read("OccludedDuke", tmp_path)


quick = settings(deadline=None, database=None)  # nothing is written, a slow machine is no fault
IDENTITIES = st.integers(0, 99999)
ANY_NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


@quick
@given(IDENTITIES, st.integers(1, 99), st.integers(1, 6), st.integers(0, 10**7), ANY_NAME)
def test_names_are_parsed_from_their_beginning(
    pid: int, width: int, camera: int, frame: int, tail: str
) -> None:
    duke = OccludedDuke.pattern.match(f"{pid:0{width}d}_c{camera}_f{frame:07d}.jpg")
    market = Market1501.pattern.match(f"{pid:0{width}d}_c{camera}s1_{frame:06d}_01.jpg")
    for match in (duke, market):
        assert (int(match[1]), int(match[2])) == (pid, camera)
    assert int(TwoSided.pattern.match(f"{pid:0{width}d}_{tail}")[1]) == pid
    for pattern in (OccludedDuke.pattern, Market1501.pattern, PDukeMTMC.pattern, TwoSided.pattern):
        assert pattern.match(f"._{pid}_c{camera}s1_{frame}.jpg") is None
        assert pattern.match(f"x{pid}_c{camera}_f{frame}.jpg") is None


@quick
@given(st.lists(ANY_NAME, min_size=1))
def test_no_path_leads_out_of_its_folder(parts: list[str]) -> None:
    name = "/".join(parts)
    try:
        kept = check_inside(name, Path("list.txt"))
    except UserError:
        assert ".." in parts or re.match(r"[\\/]|[A-Za-z]:[\\/]", name) or "\\" in name
    else:
        assert not os.path.normpath(os.path.join("/home", kept)).startswith("..")
        assert os.path.normpath(os.path.join("/a/b", kept)).startswith("/a/b")


@quick
@given(name=st.text("aBcD", min_size=1, max_size=6), spelled=st.data())
def test_the_exact_name_wins_over_another_case(
    tmp_path_factory: pytest.TempPathFactory, name: str, spelled: st.DataObject
) -> None:
    home = tmp_path_factory.mktemp("home")
    other = "".join(spelled.draw(st.sampled_from([c.lower(), c.upper()])) for c in name)
    (home / other).mkdir()
    assert resolve_case(home, name) == home / other
    (home / name).mkdir(exist_ok=True)
    assert resolve_case(home, name) == home / name
    assert resolve_case(home, f"{name}/x/y") == home / name / "x" / "y"


def test_a_set_is_not_looked_for_in_the_folder_of_another(tmp_path: Path) -> None:
    """Market-1501 may stand in the root itself; one deeper than that stands another set."""
    write_tree(tmp_path / "DukeMTMC-reID", DUKE)
    assert tmp_path / "DukeMTMC-reID" not in list_candidates(tmp_path, Market1501.layouts)
    with pytest.raises(DatasetNotFound):
        read("Market1501", tmp_path)
