"""Tokens' places by the definitions alone, and random small hierarchies, for the dense references of the tests."""


def places(layout):
    """The place on the padded map, row by row, of every token of every group, by the definitions alone."""
    H, W = (layout.query_grid[i] + layout.padding[i] for i in (0, 1))
    h, w = layout.window
    groups = []
    for a in range(H // h):
        for b in range(W // w):
            tokens = []
            for i in range(h):
                for j in range(w):
                    if layout.pad_after_shift:
                        row, column = (
                            (place + shift) % real if place < real else place
                            for place, shift, real in zip(
                                (a * h + i, b * w + j), layout.shift, layout.query_grid, strict=True
                            )
                        )
                    elif layout.kind == "window":
                        row, column = (a * h + i + layout.shift[0]) % H, (b * w + j + layout.shift[1]) % W
                    else:
                        row, column = i * (H // h) + a, j * (W // w) + b
                    tokens.append((row, column))
            groups.append(tokens)
    return groups


def hierarchy_settings(family, rng):
    window = rng.randint(2, 4)
    common = {"img_size": 32, "in_chans": 2, "num_classes": 3}
    if family == "swin":
        return {**common, "patch_size": rng.choice([2, 4]), "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 4),
                "window_size": window, **rng.choice([{}, {"mask_padding": False},
                {"mask_padding": False, "pad_after_shift": True}])}  # fmt: skip
    if family == "maxvit":
        return {**common, "stem_width": 8, "embed_dim": (8, 16), "depths": (1, 1), "dim_head": 8,
                "window_size": window}  # fmt: skip
    settings = {**common, "patch_size": 4, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2),
                "attention": rng.choice(["global", window])}  # fmt: skip
    if family == "hvt two streams":
        settings |= {"spectral_chans": 3, "spectral_embed_dim": 12, "spectral_patch_size": rng.choice([4, 5]),
                     "fusion": rng.choice(["concat", "cross_attention"])}  # fmt: skip
    return settings
