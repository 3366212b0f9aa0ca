"""Clips: reading of video files and folders of frames, and the source that lists them."""
