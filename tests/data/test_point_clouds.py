"""Point clouds: files of all formats, sampling, solids, rotations and augmentation."""

import dataclasses
import struct

import numpy as np
import pytest
import torch

from vitrail.config import DataConfig
from vitrail.config.data_groups import PointsConfig
from vitrail.data import open_data
from vitrail.data.points.augment import build_point_augmentation
from vitrail.data.points.files import READERS, read_cloud
from vitrail.data.points.rotations import random_rotations, rotate
from vitrail.data.points.sampling import choose_points, farthest_points, sample_mesh, scale_of, turn_up
from vitrail.data.points.solids import CLASSES, PARTS, make_solid
from vitrail.errors import ConfigError, DataError

POINTS = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3.5]], dtype=np.float32)
SQUARE = "OFF\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"


def write_text(path, separator=" ", header=""):
    rows = "\n".join(separator.join(f"{value:g}" for value in row) for row in POINTS)
    path.write_text(f"{header}{rows}\n", encoding="utf-8")


def pcd(form, points=POINTS):
    header = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
        f"WIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA {form}\n"
    ).encode()
    table = np.concatenate([points, np.arange(len(points))[:, None]], axis=1).astype("<f4")
    if form == "ascii":
        return header + "\n".join(" ".join(f"{v:g}" for v in row) for row in table).encode()
    if form == "binary":
        return header + table.tobytes()
    raw = table.T.tobytes()
    # Literal runs of LZF, of at most 32 bytes.
    packed = b"".join(bytes([len(raw[i : i + 32]) - 1]) + raw[i : i + 32] for i in range(0, len(raw), 32))
    return header + struct.pack("<II", len(packed), len(raw)) + packed


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.xyz", "a.txt", "a.csv", "a.PTS", "header.csv"])
def test_arrays_and_text(tmp_path, name):
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, POINTS)
    elif name == "a.npz":
        np.savez(path, points=POINTS, other=np.zeros(2))
    else:
        separators = {".csv": ",", ".txt": "\t"}
        write_text(path, separators.get(path.suffix, " "), "x,y,z\n" if name == "header.csv" else "")
    assert np.allclose(read_cloud(path).points, POINTS)


def test_columns_by_name_and_further_columns(tmp_path):
    (tmp_path / "a.csv").write_text("intensity,X,Y,Z\n0.5,1,2,3\n0.25,4,5,6\n", encoding="utf-8")
    cloud = read_cloud(tmp_path / "a.csv")
    assert cloud.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert cloud.features.tolist() == [[0.5], [0.25]]
    assert cloud.names == ("intensity",)


@pytest.mark.parametrize("form", ["ascii", "binary", "binary_compressed"])
def test_pcd(tmp_path, form):
    path = tmp_path / "a.pcd"
    unmeasured = np.concatenate([POINTS, np.full((1, 3), np.nan, np.float32)])
    path.write_bytes(pcd(form, unmeasured if form != "binary_compressed" else POINTS))
    cloud = read_cloud(path)
    assert np.allclose(cloud.points, POINTS)
    assert cloud.names == ("intensity",)
    assert np.allclose(cloud.features[:, 0], np.arange(4))


@pytest.mark.parametrize("text", [SQUARE, SQUARE.replace("OFF\n", "OFF"), SQUARE.replace("OFF\n", "OFF\n# comment\n")])
def test_off(tmp_path, text):
    (tmp_path / "a.off").write_text(text, encoding="utf-8")
    cloud = read_cloud(tmp_path / "a.off")
    assert cloud.points.shape == (4, 3)
    assert cloud.faces.tolist() == [[0, 1, 2], [0, 2, 3]]


@pytest.mark.slow_cases("ply")
@pytest.mark.parametrize("ending", ["ply", "obj", "stl"])
def test_meshes_through_trimesh(tmp_path, ending):
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.creation.box(extents=(1, 2, 3))
    mesh.export(tmp_path / f"a.{ending}")
    cloud = read_cloud(tmp_path / f"a.{ending}")
    assert len(cloud.faces) == 12
    assert np.allclose(np.ptp(cloud.points, axis=0), [1, 2, 3])


@pytest.mark.parametrize("ending", ["las", "laz"])
def test_laser_scans(tmp_path, ending):
    laspy = pytest.importorskip("laspy")
    las = laspy.create(point_format=0, file_version="1.2")
    las.header.scales = [0.01] * 3
    las.x, las.y, las.z = POINTS.T.astype(float)
    las.intensity = np.array([0, 65535, 0, 0], dtype=np.uint16)
    las.write(tmp_path / f"a.{ending}")
    cloud = read_cloud(tmp_path / f"a.{ending}")
    assert np.allclose(cloud.points, POINTS)
    assert cloud.features[:, cloud.names.index("intensity")].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xyz", b"", "it has no rows of numbers"),
        ("a.xyz", b"1 2 3\n4 5\n", "its rows have 2 to 3 numbers"),
        ("a.xyz", b"1 2 3\nx y z\n", "line 2 is not a row of numbers"),
        ("a.xyz", b"1 2\n", "needs points of 3 coordinates"),
        ("a.xyz", b"1 2 nan\n", "1 of 1 point has no finite coordinates"),
        ("a.npy", b"no array", "cannot be read as a point cloud"),
        ("a.off", b"PLY", "it does not begin with OFF"),
        ("a.off", b"OFF\n9 1 0\n0 0 0\n", "cannot be read as a point cloud"),
        ("a.pcd", b"FIELDS x y z\n", "cannot be read as a point cloud"),
        ("a.jpg", b"", r"no format of point clouds; known are \.npy"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_cloud(tmp_path / name)


def test_meshes_are_sampled_by_area():
    # Two triangles, one of four times the area of the other.
    points = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [5, 0, 0], [6, 0, 0], [5, 1, 0]], dtype=float)
    sampled = sample_mesh(points, np.array([[0, 1, 2], [3, 4, 5]]), 20_000, np.random.default_rng(0))
    assert abs((sampled[:, 0] < 4).mean() - 0.8) < 0.015
    assert abs(sampled[sampled[:, 0] < 4, :2].mean() - 2 / 3) < 0.01
    assert np.array_equal(
        sampled, sample_mesh(points, np.array([[0, 1, 2], [3, 4, 5]]), 20_000, np.random.default_rng(0))
    )


def test_subsampling():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 3))
    chosen = farthest_points(points, 20, np.random.default_rng(1))
    for i in range(1, 20):
        nearest = np.linalg.norm(points[:, None] - points[chosen[:i]], axis=2).min(axis=1)
        assert np.isclose(nearest[chosen[i]], nearest.max())
    repeated = np.concatenate([points[:5], points[:5], points[:2]])
    assert choose_points(repeated, 8, "farthest", rng).tolist() == [0, 1, 2, 3, 4]
    for how in ("farthest", "random"):
        assert len(set(choose_points(points, 20, how, rng))) == 20


def test_up_is_a_rotation():
    for up, axis in (("x", [1, 0, 0]), ("y", [0, 1, 0]), ("z", [0, 0, 1])):
        assert turn_up(np.array([axis], dtype=float), up).tolist() == [[0, 0, 1]]
        assert np.isclose(np.linalg.det(turn_up(np.eye(3), up)), 1)


def test_scales():
    points = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 3, 0], [0, -3, 0]])
    assert scale_of(points, "sphere") == 3
    assert scale_of(points, "rms") == 5**0.5
    assert scale_of(points, "none") == 1
    assert scale_of(points, 2.5) == 2.5
    assert scale_of(np.zeros((2, 3)), "sphere") == 1


def test_rotations_are_uniform():
    generator = torch.Generator().manual_seed(0)
    rotations = random_rotations(20_000, "so3", generator).double()
    assert torch.allclose(rotations @ rotations.transpose(1, 2), torch.eye(3).double().expand_as(rotations), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(20_000).double(), atol=1e-5)
    # Haar measure: every image of an axis is uniform on the sphere, and the angle has the density (1 - cos) / pi.
    assert rotations.mean(0).abs().max() < 0.02
    assert (rotations.square().mean(0) - 1 / 3).abs().max() < 0.02
    angle = ((rotations.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()
    assert abs(angle.mean().item() - (torch.pi / 2 + 2 / torch.pi)) < 0.02
    about_z = random_rotations(100, "up", generator)
    assert torch.equal(rotate(torch.tensor([[[0.0, 0, 1]]]).expand(100, 1, 3), about_z)[:, 0, 2], torch.ones(100))


@pytest.mark.parametrize("index", range(len(CLASSES)))
def test_solids(index):
    points, target, parts = make_solid(3, index, 400, 0.0, 0.0)
    assert target == index
    assert points.shape == (400, 3)
    assert np.linalg.norm(points, axis=1).max() <= 1 + 1e-9
    assert np.array_equal(points, make_solid(3, index, 400, 0.0, 0.0)[0])
    hidden = make_solid(3, index, 400, 0.0, 0.5).points
    if CLASSES[index] in ("box", "cylinder", "ellipsoid", "torus"):
        # Of a symmetric solid one side is left.
        assert np.abs(hidden.mean(0)).max() > 2 * np.abs(points.mean(0)).max()
    assert np.isfinite(make_solid(3, index, 400, 0.05, 0.0).points).all()
    own = [name for name in PARTS if name.startswith(CLASSES[target])]
    assert {PARTS[part] for part in parts} == set(own)
    if CLASSES[index] in ("cone", "pyramid"):
        assert np.ptp(points[parts == parts.min(), 2]) < 1e-9  # the base
        assert np.ptp(points[parts == parts.max(), 2]) > 0.5
    if CLASSES[index] == "torus":
        middle = (points.max(0) + points.min(0)) / 2
        radius = np.linalg.norm((points - middle)[:, :2], axis=1)
        assert radius[parts == parts.min()].mean() < radius[parts == parts.max()].mean()


def test_labels_of_points(tmp_path):
    rng = np.random.default_rng(0)
    points, parts = rng.normal(size=(8, 12, 3)), rng.integers(0, 3, (8, 12))
    labels = np.array(["cube", "ball"] * 4)
    np.savez(tmp_path / "a.npz", points=points, part=parts, label=labels, part_names=["leg", "seat", "back"])
    for i, label in enumerate(labels):
        (tmp_path / "clouds" / label).mkdir(parents=True, exist_ok=True)
        np.savetxt(tmp_path / "clouds" / label / f"{i}.txt", np.column_stack([points[i], 10 * parts[i]]))
    data = open_data(config(tmp_path / "a.npz", part="part"), (10,))
    assert data.source.parts == ("leg", "seat", "back")
    batch = data.batch(range(8))
    assert batch["parts"].shape == (8, 10)
    for i in range(8):
        place = data.source.in_file(i)
        nearest = np.abs(place[:, None] - points[i]).sum(2)
        assert nearest.min(1).max() < 1e-5
        assert batch["parts"][i].tolist() == parts[i][nearest.argmin(1)].tolist()
    files = open_data(config(tmp_path / "clouds", part="feature0"), (14,))
    assert files.source.parts == ("0", "10", "20")
    found = files.batch([files.source.keys.index("cube/0.txt")])["parts"][0]
    assert found.tolist() == [*parts[0].tolist(), -1, -1]
    assert "parts" not in open_data(config(tmp_path / "a.npz"), (10,)).batch([0])
    with pytest.raises(DataError, match=r"has no seat \(data.points.part\)"):
        open_data(config(tmp_path / "a.npz", part="seat"), (10,))
    np.savez(tmp_path / "b.npz", points=points, part=parts + 0.5, label=labels)
    with pytest.raises(DataError, match=r"data.points.part must hold whole numbers, got 0.5"):
        open_data(config(tmp_path / "b.npz", part="part"), (10,))
    with pytest.raises(ConfigError, match="of solids must be 'surface'"):
        open_data(DataConfig(source="solids", points=PointsConfig(part="side")), (10,))


@pytest.mark.parametrize("names", [(), ("leg", "seat", "back")])
def test_negative_labels_of_points_are_none(tmp_path, names):
    rng = np.random.default_rng(2)
    points, parts = rng.normal(size=(8, 12, 3)), rng.integers(-2, 3, (8, 12))
    parts[0] = -1
    # Labels whose first six digits are equal.
    written = np.where(parts < 0, parts, parts + (0 if names else 123456788))
    arrays = {"part_names": names} if names else {}
    np.savez(tmp_path / "a.npz", points=points, part=written, label=np.arange(8) % 2, **arrays)
    source = open_data(config(tmp_path / "a.npz", part="part"), (12,)).source
    assert source.parts == (names or ("123456788", "123456789", "123456790"))
    for i in range(8):
        nearest = np.abs(source.in_file(i)[:, None] - points[i]).sum(2).argmin(1)
        assert source.read([i])["parts"][0].tolist() == np.maximum(parts[i], -1)[nearest].tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1, -1, -1, -1], "has no label of 0 or above"),
        ([0, 1, 2, 7], r"has labels up to 7 and 3 names \(part_names\)"),
        ([0, 1, 2, np.inf], "must hold whole numbers, got inf"),
    ],
)
def test_labels_of_points_that_are_refused(tmp_path, labels, message):
    points = np.random.default_rng(3).normal(size=(4, 4, 3))
    names = ["leg", "seat", "back"]
    np.savez(tmp_path / "a.npz", points=points, part=[labels] * 4, label=[0, 1, 0, 1], part_names=names)
    with pytest.raises(DataError, match=message):
        open_data(config(tmp_path / "a.npz", part="part"), (4,))


def test_padding_of_arrays_is_left_out(tmp_path):
    points = np.random.default_rng(4).normal(size=(8, 12, 3))
    points[:, [2, 7, 11]] = np.nan
    features = np.tile(np.arange(12.0), (8, 1))[..., None]
    np.savez(tmp_path / "a.npz", points=points, features=features, label=np.arange(8) % 2, count=[12] * 7 + [8])
    source = open_data(config(tmp_path / "a.npz", features=("feature0",)), (12,)).source
    batch = source.read([0, 7])
    real = batch["points"].isfinite().all(-1)
    assert real.sum(1).tolist() == [9, 6]
    assert sorted(batch["features"][0, real[0], 0].tolist()) == [0, 1, 3, 4, 5, 6, 8, 9, 10]


@pytest.mark.parametrize(
    ("where", "value", "count", "message"),
    [
        ((3, 5, 0), np.nan, 12, "cloud 000003: 1 of 12 points has no finite coordinates"),
        ((3, 5), np.inf, 12, "cloud 000003: 1 of 12 points has no finite coordinates"),
        ((3,), np.nan, 12, "cloud 000003: needs points of 3 coordinates, at least one"),
        ((3, 5), 0.0, 0, "cloud 000003: needs points of 3 coordinates, at least one"),
    ],
)
def test_arrays_with_points_that_are_refused(tmp_path, where, value, count, message):
    points, counts = np.random.default_rng(5).normal(size=(8, 12, 3)), np.full(8, 12)
    points[where], counts[3] = value, count
    np.savez(tmp_path / "a.npz", points=points, label=np.arange(8) % 2, count=counts)
    with pytest.raises(DataError, match=message):
        open_data(config(tmp_path / "a.npz"), (12,))


@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_places_in_the_file_whatever_is_up(tmp_path, up):
    points = np.random.default_rng(1).normal(size=(8, 9, 3)) * 5 + 3
    np.savez(tmp_path / "a.npz", points=points, label=np.arange(8) % 2)
    source = open_data(dataclasses.replace(config(tmp_path / "a.npz"), up=up), (9,)).source
    assert np.allclose(source.in_file(3), points[3], atol=1e-5)


def config(path, **points):
    return DataConfig(source="points", path=str(path), points=PointsConfig(**points), batch_size=4)


def test_folders_tables_and_arrays_give_the_same_clouds(tmp_path):
    rng = np.random.default_rng(0)
    clouds = rng.normal(size=(8, 12, 3)).astype(np.float32)
    labels = ["cube", "ball"] * 4
    rows = ["path,label,split"]
    for i, (cloud, label) in enumerate(zip(clouds, labels, strict=True)):
        split = "test" if i >= 6 else "train"
        folder = tmp_path / "clouds" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{i}.npy", cloud)
        rows.append(f"clouds/{split}/{label}/{i}.npy,{label},{split}")
    (tmp_path / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    np.savez(tmp_path / "all.npz", points=clouds, label=np.array(labels), test=np.arange(8) >= 6)
    found = {}
    for path in ("clouds", "list.csv", "all.npz"):
        data = open_data(config(tmp_path / path), (10,))
        assert data.source.classes == ("ball", "cube")
        assert len(data.splits["test"]) == 2
        batch = data.batch(range(8))
        assert batch["points"].shape == (8, 10, 3)
        assert batch["points"].mean(1).abs().max() < 1e-6
        assert torch.allclose(batch["points"].norm(dim=2).amax(1), torch.ones(8))
        found[path] = sorted(batch["points"].norm(dim=2).sum(1).tolist())
        assert data.statistics() == {"points": ([0.0] * 3, [1.0] * 3)}
    assert found.keys() == {"clouds", "list.csv", "all.npz"}


@pytest.mark.parametrize(("label", "message"), [
    ("cube", r"lists 1 point cloud more than once: 0.npy; keep one row each"),
    ("ball", r"lists 1 point cloud more than once, 1 of them with different labels: 0.npy \(ball, cube\); keep one"),
])  # fmt: skip
@pytest.mark.parametrize("again", ["0.npy", "./0.npy"])
def test_a_file_is_listed_once(tmp_path, label, message, again):
    rows = ["path,label", "0.npy,cube", "1.npy,ball", f"{again},{label}"]
    (tmp_path / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        open_data(config(tmp_path / "list.csv"), (10,))


def test_repeated_points_are_left_out_and_attributes_kept(tmp_path):
    points = np.arange(24.0).reshape(1, 8, 3) ** 1.5
    points[:, 5:] = points[:, :3]
    features = np.arange(8.0).reshape(1, 8, 1)
    np.savez(tmp_path / "a.npz", points=np.repeat(points, 8, 0), features=np.repeat(features, 8, 0),
             label=np.array([0, 1] * 4), count=np.array([8, 5, 4, 8] * 2), classes=np.array(["a", "b"]))  # fmt: skip
    data = open_data(config(tmp_path / "a.npz", features=("feature0",)), (8,))
    batch = data.batch(range(4))
    assert batch["points"].isfinite().all(-1).sum(1).tolist() == [5, 5, 4, 5]
    assert batch["features"][0, :5, 0].tolist() == [0, 1, 2, 3, 4]
    assert set(data.statistics()) == {"points", "features"}
    with pytest.raises(DataError, match=r"has no red \(data.points.features\); it has feature0"):
        open_data(config(tmp_path / "a.npz", features=("red",)), (8,))


def test_clouds_for_a_model_of_images_are_refused():
    with pytest.raises(ConfigError, match=r"data\.source solids has point clouds"):
        open_data(DataConfig(source="solids"), (16, 16))
    with pytest.raises(ConfigError, match=r"data\.points\.turn 'up' does not apply to data\.source digits"):
        open_data(DataConfig(source="digits", points=PointsConfig(turn="up")), (16, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_points": 0}, "data.points.num_points"),
        ({"drop": 1.0}, "data.points.drop"),
        ({"zoom": (1.2, 0.8)}, "data.points.zoom"),
        ({"scale": -1.0}, "data.points.scale"),
        ({"jitter": -0.1}, "data.points.jitter"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(source="solids", points=PointsConfig(**settings))


def test_augmentation():
    points = torch.randn(6, 40, 3)
    assert build_point_augmentation(PointsConfig()) is None
    turned = build_point_augmentation(PointsConfig(turn="so3"))({"points": points})["points"]
    assert torch.allclose(turned.norm(dim=2), points.norm(dim=2), atol=1e-5)
    assert not torch.allclose(turned, points)
    upright = build_point_augmentation(PointsConfig(turn="up"))({"points": points})["points"]
    assert torch.allclose(upright[..., 2], points[..., 2], atol=1e-6)
    zoomed = build_point_augmentation(PointsConfig(zoom=(0.5, 2.0)))({"points": points})["points"]
    ratio = zoomed / points
    assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-3)
    jittered = build_point_augmentation(PointsConfig(jitter=0.01))({"points": points})["points"]
    assert 0 < (jittered - points).abs().max() <= 0.03 + 1e-6
    dropped = build_point_augmentation(PointsConfig(drop=0.9))({"points": points})["points"]
    assert dropped[:, 0].isfinite().all()
    assert 0 < dropped.isnan().any(-1).float().mean() < 0.9


def test_the_formats():
    assert set(READERS) >= {
        ".npy",
        ".npz",
        ".xyz",
        ".txt",
        ".csv",
        ".off",
        ".obj",
        ".ply",
        ".pcd",
        ".las",
        ".laz",
        ".stl",
    }
