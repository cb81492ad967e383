use millstream_plugin as _;
