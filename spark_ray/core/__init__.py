"""Floor 0: what every other room stands on. Imports nothing from the rooms above."""
