"""From text, audio and video to feature steps on a common clock. Knows no model and no engine."""
