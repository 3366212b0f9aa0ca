"""Names that transformers gives to the parts of a transformer block, in ViT and in Swin alike."""

from __future__ import annotations

from vitrail.weights.rules import MergeRows, Rename, Rule


def block_rules(block: str, attention: str) -> tuple[Rule, ...]:
    """Return the rules from a block of transformers to one of vitrail: norms, attention and MLP.

    Args:
        block: Pattern of the block's name, a regular expression without groups.
        attention: Name of the module with separate queries, keys and values, inside of the block's ``attention``.
            Newer versions have ``q_proj``, ``k_proj`` and ``v_proj`` in ``attention`` itself.
    """
    return (
        Rename(rf"({block})\.layernorm_before\.(.*)", r"\1.norm1.\2"),
        Rename(rf"({block})\.layernorm_after\.(.*)", r"\1.norm2.\2"),
        MergeRows(
            rf"({block})\.attention\.{attention}\.(?P<part>query|key|value)\.(weight|bias)",
            ("query", "key", "value"),
            r"\1.attn.qkv.\3",
        ),
        MergeRows(
            rf"({block})\.attention\.(?P<part>[qkv]_proj)\.(weight|bias)",
            ("q_proj", "k_proj", "v_proj"),
            r"\1.attn.qkv.\3",
        ),
        Rename(rf"({block})\.attention\.(?:output\.dense|o_proj)\.(.*)", r"\1.attn.proj.\2"),
        Rename(rf"({block})\.intermediate\.dense\.(.*)", r"\1.mlp.fc1.\2"),
        Rename(rf"({block})\.output\.dense\.(.*)", r"\1.mlp.fc2.\2"),
    )
