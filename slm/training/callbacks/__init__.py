"""Lightning callbacks: what happens around the steps of a run. They change no weight."""
