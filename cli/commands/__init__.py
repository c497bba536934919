"""Commands for people at a server: draw, see and steer it, make keys, and find what is wrong with a set-up."""

COMPLETING = "_SAFECB_COMPLETE"  # environment variable by which a shell asks how a command goes on
