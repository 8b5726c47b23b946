// SPDX-License-Identifier: Apache-2.0

// Package apiserver keeps a client in touch with one of several API servers, which is what a node has
// to do by itself where nothing but this agent makes the Service `kubernetes` work.
//
//	values, environment -> given  \
//	                               tried in turn -> the one in use -> requests
//	EndpointSlices      -> learnt /
//	                         |
//	                         +-> a file on the node, for the next start
//
// A request that does not reach the server in use goes to the next one, and the next one stays in use.
// A server that takes connections and no longer answers, or says that it is not ready, is found by
// asking it every few seconds, and left for one that is ready.
package apiserver
