"""The picture of a run's training and validation loss."""

from pathlib import Path


def read_curves(run: Path, names: tuple[str, ...]) -> dict[str, tuple[list[int], list[float]]]:
    """Reads scalars from a run's TensorBoard files.

    Args:
        run: The run's folder.
        names: Which scalars.

    Returns:
        For each name that the run has: optimizer steps and values.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for name in names:
        if name in events.Tags()["scalars"]:
            points = events.Scalars(name)
            curves[name] = ([point.step for point in points], [point.value for point in points])
    return curves


def draw_loss(run: Path) -> Path | None:
    """Draws `loss.png` into a run's folder.

    Args:
        run: The run's folder, with TensorBoard files in it.

    Returns:
        The picture's path; None if the run has logged no loss.
    """
    curves = read_curves(run, ("train_loss", "val_loss", "val_bits_per_byte"))
    if not curves:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    if "train_loss" in curves:
        axes.plot(*curves["train_loss"], color="#0072b2", linewidth=1.2, label="training")
    if "val_loss" in curves:
        steps, losses = curves["val_loss"]
        best = min(range(len(losses)), key=losses.__getitem__)
        label = f"validation, best {losses[best]:.3f}"
        if "val_bits_per_byte" in curves:
            label += f" ({curves['val_bits_per_byte'][1][best]:.3f} bits per byte)"
        axes.plot(steps, losses, "o-", color="#d55e00", markersize=5, label=label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(f"Loss of {run.name}")
    axes.grid(alpha=0.3)
    axes.legend()
    path = run / "loss.png"
    figure.savefig(path, dpi=150)
    return path
