"""Commands for people at a server: draw, see and steer it, make keys, and find what is wrong with a set-up."""
