"""Scale benchmark: several machines with homes of their own on one S3 bucket and one Redis, measured against bars."""
