"""Small programs that the benchmarks run, bare and through `urun`; each is started by its path."""
