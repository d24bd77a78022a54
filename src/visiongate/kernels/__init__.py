"""Floor 0: the few compute kernels that torch lacks, each with its reference."""
