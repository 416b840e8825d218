"""The system: the LightningModule, optimizer and schedule, metrics, checkpoints, callbacks."""
