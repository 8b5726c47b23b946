// SPDX-License-Identifier: Apache-2.0

// Package standin is an API server in memory that answers lists and watches of as many objects as one
// likes, so that what programs a node can be measured without a cluster: node programs of all kinds get
// the same objects, in the same way, from it.
//
//	Put, Delete --------> store --+--> lists    (JSON, protobuf)
//	POST, PUT, PATCH -----^       +--> watches  (with bookmarks, and with the whole set first if asked)
//
// It is a server of the kinds in kinds.go and nothing else: there is no admission, no defaulting, no
// conversion, no access control and no garbage collection. Objects are kept as they travel, so that
// what a list or an event costs the machine is little more than sending it. When an event was sent is
// noted at the moment that its bytes go into the connection.
package standin
