// SPDX-License-Identifier: Apache-2.0

// Package crash lets tests end the node program at named points, as a kernel would that runs out of
// memory: in a build with the tag "crash" the process kills itself at the point that the file
// /run/lash/crash names, once. In any other build the points are nothing.
package crash

// The points, in the order of a start; the last ones are passed when a pod is added.
const (
	Owned     = "owned"     // the pins are ours, nothing is read yet
	Devices   = "devices"   // the node's devices are made
	Renamed   = "renamed"   // a flow table has become the one before, there is no new one yet
	Maps      = "maps"      // all maps are open
	Pinned    = "pinned"    // a program of a new generation is pinned, others are not
	Loaded    = "loaded"    // the generation is chosen, nothing is attached
	Restored  = "restored"  // pods are known again
	Synced    = "synced"    // the maps are as the cluster wants them
	Hooks     = "hooks"     // some hooks have the new generation
	Ready     = "ready"     // pods may come
	Retired   = "retired"   // the generation before is forgotten
	Moved     = "moved"     // flows of one table have moved
	PodLink   = "pod-link"  // a pod has its devices, and nobody knows it yet
	PodKnown  = "pod-known" // a pod is in the tables
	Published = "published" // a pod is in the kernel, the plugin has no answer yet
)

// Starts are the points that every start passes, Upgrades those of a new generation over tables of
// another size, and Pods those of adding a pod.
var (
	Starts   = []string{Owned, Devices, Maps, Loaded, Restored, Synced, Ready}
	Upgrades = []string{Renamed, Pinned, Hooks, Retired, Moved}
	Pods     = []string{PodLink, PodKnown, Published}
)

// File names the next point.
const File = "/run/lash/crash"
