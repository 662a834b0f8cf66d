"""Single-device torch building blocks of all three systems; no input or output.

Shape letters, used in every docstring of the project:

| letter | meaning |
|---|---|
| B | batch |
| L | text tokens |
| P | image patches |
| N | image tokens, 1 + P |
| S | fused tokens, or the tokens of a memory |
| D | width |
| H | attention heads |
| K | width of a head |
| E | width of the shared projection |
| V | vocabulary |
| Q | queue |
| G | gathered batch |
| R | beams |
| M | text rows of a fusion pass, each with the index of its image |
"""
