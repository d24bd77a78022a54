"""The standard work, ours and the peers', as seeded and repeatable runs.

    python -m benchmarks               the standard work W1 to W5 with every installed engine
    python -m benchmarks kernels       the kernels alone, beside torch and the machine's limits
    python -m benchmarks checkpoint    only writes the random checkpoint of the true 2B shape

docs/benchmarks.md says what the work is and how to read the figures.
"""
