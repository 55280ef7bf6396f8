"""krbrefresh beside what people run today: `make bench` measures, `benchmarks/report.py` draws docs/benchmarks.md."""
