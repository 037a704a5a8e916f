// SPDX-License-Identifier: Apache-2.0
//
// ONNX Runtime with a pretended CUDA provider, for a test that needs no GPU. All calls go
// to the real library, whose path is in EARLYDROP_TEST_REAL, which computes on the CPU;
// the provider can be asked for, and changes nothing. But, as the CUDA provider does, a
// bound input is copied when it is bound, not when the session runs: what is written to
// it afterwards reaches no run.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

static const OrtApi *real;

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
	OrtStatus *status = device_copy(value, &copy);

	if (status)
		return status;
	status = real->BindInput(binding, name, copy);
	real->ReleaseValue(copy); // the binding holds it, too
	return status;
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

static OrtStatus *append_cuda(OrtSessionOptions *options, const OrtCUDAProviderOptionsV2 *cuda)
{
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
