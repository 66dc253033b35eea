"""Fine-tuning: a plan made of the data, the start and the time, and the training that follows it."""
