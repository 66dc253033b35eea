"""Speed on this machine: latency by stages, and throughput. The races are in `benchmarks/` of a clone."""
