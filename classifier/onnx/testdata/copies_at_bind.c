// SPDX-License-Identifier: Apache-2.0
//
// ONNX Runtime with a pretended CUDA provider, for a test that needs no GPU. All calls go
// to the real library, whose path is in EARLYDROP_TEST_REAL, which computes on the CPU;
// the provider can be asked for, and changes nothing of what is computed. But of sessions
// with it
//  - as with the CUDA provider, a bound input is copied when it is bound, not when the session
//    runs: what is written to it afterwards reaches no run,
//  - the size of each batch is written to the file that EARLYDROP_TEST_BATCHES names, a line
//    each, if it names one,
//  - after as many runs as EARLYDROP_TEST_RUNS says, if it says so, all runs fail.
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "onnxruntime_c_api.h"

static const OrtApi *real;

// What has the provider: session options, sessions, and bindings of these. They are few, and
// those that were released need not be known any more.
static struct {
	pthread_mutex_t lock;
	const void *known[4096];
	int n;
} cuda = { PTHREAD_MUTEX_INITIALIZER };

static int has_cuda(const void *object)
{
	int found = 0;

	pthread_mutex_lock(&cuda.lock);
	for (int i = 0; i < cuda.n; i++)
		found |= cuda.known[i] == object;
	pthread_mutex_unlock(&cuda.lock);
	return found;
}

// set_cuda notes whether an object that was just made has the provider: another one may have
// had its address.
static void set_cuda(const void *object, int has)
{
	pthread_mutex_lock(&cuda.lock);
	for (int i = 0; i < cuda.n; i++)
		if (cuda.known[i] == object)
			cuda.known[i] = NULL;
	if (has) {
		if (cuda.n == sizeof(cuda.known) / sizeof(cuda.known[0]))
			abort();
		cuda.known[cuda.n++] = object;
	}
	pthread_mutex_unlock(&cuda.lock);
}

// device_copy makes a value of its own with the same type, shape and bytes.
static OrtStatus *device_copy(const OrtValue *value, OrtValue **copy)
{
	OrtTensorTypeAndShapeInfo *info;
	ONNXTensorElementDataType type;
	OrtAllocator *allocator;
	int64_t dims[8];
	size_t rank, elements;
	void *from, *to;
	OrtStatus *status;

	if ((status = real->GetTensorTypeAndShape(value, &info)))
		return status;
	if ((status = real->GetTensorElementType(info, &type)) ||
	    (status = real->GetDimensionsCount(info, &rank)) ||
	    (status = real->GetDimensions(info, dims, rank)) ||
	    (status = real->GetTensorShapeElementCount(info, &elements)) ||
	    (status = real->GetAllocatorWithDefaultOptions(&allocator)) ||
	    (status = real->CreateTensorAsOrtValue(allocator, dims, rank, type, copy)) ||
	    (status = real->GetTensorMutableData((OrtValue *)value, &from)) ||
	    (status = real->GetTensorMutableData(*copy, &to)))
		return status;
	real->ReleaseTensorTypeAndShapeInfo(info);
	if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
		return real->CreateStatus(ORT_FAIL, "the input is not of bytes");
	memcpy(to, from, elements);
	return NULL;
}

static OrtStatus *bind_input(OrtIoBinding *binding, const char *name, const OrtValue *value)
{
	OrtValue *copy;
	OrtStatus *status;

	if (!has_cuda(binding))
		return real->BindInput(binding, name, value);
	if ((status = device_copy(value, &copy)))
		return status;
	status = real->BindInput(binding, name, copy);
	real->ReleaseValue(copy); // the binding holds it as well
	return status;
}

static OrtStatus *create_binding(OrtSession *session, OrtIoBinding **out)
{
	OrtStatus *status = real->CreateIoBinding(session, out);

	if (!status)
		set_cuda(*out, has_cuda(session));
	return status;
}

static OrtStatus *create_options(OrtSessionOptions **out)
{
	OrtStatus *status = real->CreateSessionOptions(out);

	if (!status)
		set_cuda(*out, 0);
	return status;
}

static OrtStatus *create_session(const OrtEnv *env, const void *data, size_t n,
				 const OrtSessionOptions *options, OrtSession **out)
{
	OrtStatus *status = real->CreateSessionFromArray(env, data, n, options, out);

	if (!status)
		set_cuda(*out, has_cuda(options));
	return status;
}

// note_batch writes the size of a batch, and says whether its run is to fail.
static int note_batch(long long size)
{
	static int fd = -1, runs;
	const char *path = getenv("EARLYDROP_TEST_BATCHES"), *most = getenv("EARLYDROP_TEST_RUNS");
	char line[32];
	int n = snprintf(line, sizeof(line), "%lld\n", size), fails;

	pthread_mutex_lock(&cuda.lock);
	if (path && fd < 0)
		fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (path && write(fd, line, n) != n)
		abort();
	fails = most && ++runs > atoi(most);
	pthread_mutex_unlock(&cuda.lock);
	return fails;
}

static OrtStatus *run(OrtSession *session, const OrtRunOptions *options,
		      const char *const *input_names, const OrtValue *const *inputs, size_t n_in,
		      const char *const *output_names, size_t n_out, OrtValue **outputs)
{
	if (has_cuda(session)) {
		OrtTensorTypeAndShapeInfo *info;
		int64_t dims[4];
		OrtStatus *status;

		if ((status = real->GetTensorTypeAndShape(inputs[0], &info)) ||
		    (status = real->GetDimensions(info, dims, 4)))
			return status;
		real->ReleaseTensorTypeAndShapeInfo(info);
		if (note_batch(dims[0]))
			return real->CreateStatus(ORT_FAIL, "the device is lost");
	}
	return real->Run(session, options, input_names, inputs, n_in, output_names, n_out, outputs);
}

static OrtStatus *create_cuda(OrtCUDAProviderOptionsV2 **out)
{
	*out = malloc(1);
	return NULL;
}

static OrtStatus *update_cuda(OrtCUDAProviderOptionsV2 *options, const char *const *keys,
			      const char *const *values, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(keys[i], "device_id") == 0 && strcmp(values[i], "0") != 0)
			return real->CreateStatus(ORT_INVALID_ARGUMENT, "there is no such device");
	return NULL;
}

static void release_cuda(OrtCUDAProviderOptionsV2 *options)
{
	free(options);
}

static OrtStatus *append_cuda(OrtSessionOptions *options, const OrtCUDAProviderOptionsV2 *asked)
{
	set_cuda(options, 1);
	return NULL;
}

static const OrtApiBase *real_base(void)
{
	static const OrtApiBase *base;

	if (!base) {
		void *library = dlopen(getenv("EARLYDROP_TEST_REAL"), RTLD_NOW | RTLD_LOCAL);
		const OrtApiBase *(*get)(void) =
			library ? (const OrtApiBase *(*)(void))dlsym(library, "OrtGetApiBase") : NULL;

		if (!get) {
			fprintf(stderr, "the real library: %s\n", dlerror());
			exit(1);
		}
		base = get();
	}
	return base;
}

static const OrtApi *get_api(uint32_t version)
{
	static OrtApi api;

	if (!(real = real_base()->GetApi(version)))
		return NULL;
	api = *real;
	api.BindInput = bind_input;
	api.CreateIoBinding = create_binding;
	api.CreateSessionOptions = create_options;
	api.CreateSessionFromArray = create_session;
	api.Run = run;
	api.CreateCUDAProviderOptions = create_cuda;
	api.UpdateCUDAProviderOptions = update_cuda;
	api.ReleaseCUDAProviderOptions = release_cuda;
	api.SessionOptionsAppendExecutionProvider_CUDA_V2 = append_cuda;
	return &api;
}

static const char *get_version(void)
{
	return real_base()->GetVersionString();
}

const OrtApiBase *OrtGetApiBase(void)
{
	static const OrtApiBase base = { get_api, get_version };

	return &base;
}
