"""Data: from files on disk to batches of tensors.

A reader (`readers/`, one file a format, found by `manifest.read_records`) gives `records.Record`s
and the `skips.Skipped` entries it could not use. Images are decoded by `images.decode_image`;
`check.check_sources` looks at a whole dataset before training.
"""
