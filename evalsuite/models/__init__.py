"""What answers: the Model protocol, the language model of this package, its engine, presets and other backends."""
