"""Published benchmarks: the paper's tables, GenEval, PolyVoice, and the report of the demo."""
