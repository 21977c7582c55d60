"""What a run leaves behind for people: metrics as CSV, curves, W&B runs, summaries. The only place that knows wandb."""
