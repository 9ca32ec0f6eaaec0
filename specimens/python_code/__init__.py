"""The Python-code specimen: a small GPT-2 trained on Python's standard library and generated code."""
