"""Measures of explanations: faithfulness, robustness, agreement with masks."""
