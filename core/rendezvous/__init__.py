"""Step batching over unmodified pipelines of torch modules: calls are captured, merged by rows, run once and split."""
