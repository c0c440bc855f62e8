//! What a configuration says, and every message about what it should not say.
