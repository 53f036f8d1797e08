"""Analysis of recorded tables: bandwidths, crossovers, skew, the latency model, traces."""
