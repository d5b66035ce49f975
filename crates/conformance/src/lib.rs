//! A kit that certifies speculative decoders: exact enumeration, sequential tests, known-wrong variants.
