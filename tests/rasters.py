"""Small TIFF files that tests make."""

import numpy as np
import tifffile

BANDS = ("vv", "vh")


def write_tiff(path, array, nodata=None, scale=None, offset=None, orientation=None, mask=None, **options):
    """Write bands ``(C, H, W)`` as planes, with GDAL's tags where they are given."""
    tags = []
    if nodata is not None:
        tags.append((42113, "s", 0, str(nodata), True))
    if scale is not None or offset is not None:
        tags.append((42112, "s", 0, gdal_metadata(len(array), scale, offset), True))
    if orientation is not None:
        tags.append((274, "H", 1, orientation, True))
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(array) > 1:
        options["planarconfig"] = "separate"
    with tifffile.TiffWriter(path) as file:
        planes = array if len(array) > 1 else array[0]
        file.write(planes, photometric="minisblack", extratags=tags, metadata=None, **options)
        if mask is not None:
            file.write(mask, subfiletype=4, photometric="minisblack", metadata=None)
    return path


def gdal_metadata(bands, scale=None, offset=None):
    """The tag GDAL_METADATA as GDAL writes a scale and an offset for each band."""
    items = []
    for role, values in (("scale", scale), ("offset", offset)):
        values = np.broadcast_to(np.asarray({"scale": 1.0, "offset": 0.0}[role] if values is None else values), bands)
        items += [
            f'<Item name="{role.upper()}" sample="{band}" role="{role}">{value}</Item>'
            for band, value in enumerate(values)
        ]
    return f"<GDALMetadata>{''.join(items)}</GDALMetadata>"


def write_classes(root, draw, number=3, **tags):
    """A folder of two classes; ``draw(class)`` gives the bands of an image."""
    for label in (0, 1):
        for i in range(number):
            write_tiff(root / str(label) / f"{i}.tif", draw(label), **tags)
    return root
