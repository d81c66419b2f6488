"""The synthetic world, in nuScenes' and DriveLM's formats."""
