"""The built-in world: seeded images and clips with exact ground truth, written as public formats.

`config` sets the world, `world` draws scenes, `render` paints them, `language`, `questions` and
`statements` say true (or knowingly false) things about them, `clips` makes them move, and `write`
lays all of it down as the files that the readers of the public datasets take.
"""
