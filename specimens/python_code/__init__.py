"""The Python-code specimen: a small GPT-2 trained on the standard library and made-up code."""
